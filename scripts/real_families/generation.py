"""Compares generated tokens with those of the transformers release that the code was written for.

The other release runs in another interpreter (`--oracle PYTHON`), which loads the same files. If the other release
fails or is not given, greedy tokens are compared with an argmax loop without a cache. The weights have a scale at which
the tokens differ; parameters that the release ties after loading are one tensor.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from family import tensors, write_safetensors
from loading import ClassFailsError, decode, full, generates, in_both, same
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from family import Family

NEW = 24
GREEDY: tuple[dict[str, Any], ...] = ({"do_sample": False}, {"do_sample": False, "use_cache": False})
_SAMPLED: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_k": 0, "top_p": 0.8},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3},
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "top_k": 0},
    {"typical_p": 0.6, "top_k": 0},
    {"num_return_sequences": 3},
)
SAMPLED = tuple({"do_sample": True, **settings} for settings in _SAMPLED)


_BEAMS: tuple[dict[str, Any], ...] = (
    {"num_beams": 3},
    {"num_beams": 3, "use_cache": False},
    {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.6, "early_stopping": True},
    {"num_beams": 3, "do_sample": True},
    {"num_beams": 2, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "num_return_sequences": 2},
)
BEAMS = tuple({"do_sample": False, **settings} for settings in _BEAMS)


def lively(family: Family) -> Path:
    """Write the repo with weights for which the most likely token changes from step to step, and return the folder."""
    folder = family.work / "lively"
    if folder.exists():
        return folder
    shutil.copytree(family.folder, folder, ignore=shutil.ignore_patterns("*.model", "*.bin", "*.safetensors"))
    model, generator = family.make_oracle(), torch.Generator().manual_seed(0)
    state = dict(family.state)
    for path, module in model.named_modules():
        for name, value in module._parameters.items():
            if value is None or not value.is_floating_point():
                continue
            random = torch.randn(value.shape, generator=generator)
            if value.dim() < 2:
                random = random * 0.1 + (1 if name == "weight" else 0)
            else:
                # A convolution over images takes a window of all channels.
                inputs = value[0].numel() if value.dim() == 4 else value.shape[-1]
                random *= 0.3 if isinstance(module, nn.Embedding) else 3 / inputs**0.5
            state[f"{path}.{name}".lstrip(".")] = random.to(value.dtype)
    for name, other in {**family.tied, **_ties(model)}.items():
        state[name] = state[other]
    write_safetensors(
        {name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors"
    )
    return folder


def _ties(model: nn.Module) -> dict[str, str]:
    """Return {name of the output embedding: name of the input embedding} if the config ties them, else {}."""
    output = model.get_output_embeddings()
    if output is None or not getattr(model.config, "tie_word_embeddings", True):
        return {}
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), name)
    return {names[id(output.weight)]: names[id(model.get_input_embeddings().weight)]}


def prompt(family: Family, length: int = 12) -> Any:
    """Return token ids of shape (1, length), with the special tokens at the end that ChatGLM-6B looks for.

    If the repo's inputs.json describes the arguments of `generate` under `_prompt`, return these arguments by name.
    """
    if family.prompt:
        return family.made(family.prompt)
    ids = torch.arange(3, 3 + length)[None] * 7 % 150 + 4
    if "gmask_token_id" in family.config_json:
        ids[0, -2:] = torch.tensor([family.config_json[f"{n}_token_id"] for n in ("gmask", "bos")])
    return ids


def load(family: Family, dtype: Any = "auto") -> Any:
    """Load the lively weights with shardload."""
    return family.from_pretrained(lively(family), dtype)


def run(model: Any, ids: Any, **settings: Any) -> list[list[int]]:
    """Return the new tokens of `generate`, without a stop at an end token; all tokens for a prompt of arguments."""
    # A repo's own generate may accept no padding token.
    pad = {} if model.generation_config is None or not _is_base(model) else {"pad_token_id": 0}
    torch.manual_seed(5)
    settings |= {"max_new_tokens": NEW, "eos_token_id": None, **pad}
    if isinstance(ids, dict):
        return model.generate(**{**ids, **settings}).tolist()
    return model.generate(ids, **settings)[:, ids.shape[1] :].tolist()


def _is_base(model: Any) -> bool:
    return "max_new_tokens" not in type(model).generate.__code__.co_varnames


def oracle(family: Family, cases: list[dict[str, Any]]) -> list[Any]:
    """Return the new tokens of the other release for the settings of each case, or the text of its error.

    The other release runs once for the cases of all steps: it takes longer to start than to generate.
    """
    if not hasattr(family, "generated"):
        every, ids = [*GREEDY, *SAMPLED, *_beams_of(family)], prompt(family)
        question = {"folder": str(lively(family)), "new": NEW, "cases": every, "cuda": family.pretends_cuda}
        if isinstance(ids, dict):
            question["arguments"] = {name: _as_json(value) for name, value in ids.items()}
        else:
            question["ids"] = ids.tolist()
            every.append(padded(family)[2])
        script = Path(__file__).with_name("generate_elsewhere.py")
        answer = subprocess.run(
            [family.transformers, "-W", "ignore", script],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode:
            reason = answer.stderr.strip().splitlines()[-1][:90]
            found: list[Any] = [reason] * len(every)
        else:
            found = json.loads(answer.stdout.splitlines()[-1])
        family.generated = {json.dumps(case): one for case, one in zip(every, found, strict=True)}
    return [family.generated[json.dumps(case)] for case in cases]


def _as_json(value: Any) -> Any:
    """Return tensors, also inside lists, as dtype and numbers; return any other value unchanged."""
    if isinstance(value, list):
        return [_as_json(one) for one in value]
    if not isinstance(value, torch.Tensor):
        return value
    return {"dtype": str(value.dtype).removeprefix("torch."), "numbers": value.tolist()}


def argmax(family: Family, model: Any, ids: torch.Tensor) -> list[int]:
    """Return the most likely tokens, each from a forward pass over all tokens before it."""
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(NEW):
            ids = torch.cat(
                [ids, model(input_ids=ids, **full(family, ids)).logits[:, -1].argmax(-1, keepdim=True)], 1
            )
    return ids[0, start:].tolist()


def greedy(family: Family) -> str:
    """Compare greedy tokens, with and without a cache."""
    if family.own_generation:
        return own(family)
    if not generates(family):
        return "the class does not generate"
    model, ids, cases = load(family), prompt(family), list(GREEDY)
    expected = oracle(family, cases) if family.transformers else ["none given"] * len(cases)
    try:
        got = [run(model, ids, **case) for case in cases]
    except Exception as error:
        if expected[0] == f"{type(error).__name__}: {str(error)[:60]}":
            raise ClassFailsError(f"{expected[0]} (the other release too)") from error
        raise
    beside = f", {len(set(got[0][0][-NEW:]))} different"
    if isinstance(expected[0], str) and family.prompt:
        raise ValueError(f"no other release to compare with: {expected[0]}")
    if isinstance(expected[0], str):
        beside += f"; that of loops, for the other release: {expected[0]}" * bool(family.transformers)
        loop = [argmax(family, model, ids)]
        expected = [loop, loop]
        if family.served_by == "shim":
            with torch.no_grad():
                expected[0] = decode(family, built(family, model), ids, NEW)["ids"][
                    :, ids.shape[1] :
                ].tolist()
    _same(got, expected)
    return f"equal{beside}"


def built(family: Family, model: Any) -> Any:
    """Return a model of the class, built on the CPU, with the weights of a loaded model."""
    reference = family.make()
    reference.load_state_dict(model.state_dict(), assign=True)
    return family.finished(reference.eval())


def own(family: Family) -> str:
    """Compare the output of a class's own method of generation with that of the model built on the CPU."""
    ((name, arguments),) = family.own_generation.items()
    model = load(family)

    def answer(one: Any) -> torch.Tensor:
        torch.manual_seed(5)
        return getattr(family.prepared(one), name)(**family.made(arguments))

    expected, got = in_both(answer, built(family, model), model)
    same(tensors(expected), tensors(got))
    return f"by its own {name}: equal, {len(set(next(iter(tensors(got).values())).flatten().tolist()))} different"


def sampling(family: Family) -> str:
    """Compare sampled tokens of several settings, with one seed."""
    return compared(family, list(SAMPLED))


def beams(family: Family) -> str:
    """Compare the tokens of beam search, greedy and sampled.

    The dtype is float32 where possible: beams often have equal scores, and half precision rounds differently.
    """
    return compared(family, _beams_of(family), "auto" if _keeps_its_dtype(family) else torch.float32)


def _beams_of(family: Family) -> list[dict[str, Any]]:
    dtype = {} if _keeps_its_dtype(family) else {"_dtype": "float32"}
    return [{**case, **dtype} for case in BEAMS]


def _keeps_its_dtype(family: Family) -> bool:
    """Whether the model can't run in float32: its prompt has pixels, or its layers are always in half precision."""
    return bool(family.prompt) or "gmask_token_id" in family.config_json


def compared(family: Family, cases: list[dict[str, Any]], dtype: Any = "auto") -> str:
    """Compare the tokens of several settings with those of the other release; settings that fail there are left out."""
    if not family.transformers:
        return "no oracle"
    if not generates(family):
        return "-"
    model, ids = load(family, dtype), prompt(family)
    expected = oracle(family, cases)
    if all(isinstance(one, str) for one in expected):
        return "the oracle fails"
    for case, other in zip(cases, expected, strict=True):
        if not isinstance(other, str):
            _same([run(model, ids, **{n: v for n, v in case.items() if n != "_dtype"})], [other])
    left = [
        f"not compared: {case} ({one})"
        for case, one in zip(cases, expected, strict=True)
        if isinstance(one, str)
    ]
    return "; ".join([f"equal, {len(cases) - len(left)} settings", *left])


def padding(family: Family) -> str:
    """Compare a batch with left padding with the other release, or with its single rows if there is no other release.

    Both run in float32: half precision rounds differently.
    """
    if not generates(family) or family.prompt:
        return "-"
    if "gmask_token_id" in family.config_json:
        return "its tokenizer makes the masks"
    model = load(family, torch.float32)
    batch, mask, case = padded(family)
    own = {}
    if model.config.model_type == "chatglm":  # its tokenizer makes position_ids
        own["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    if family.transformers and not own:
        (expected,) = oracle(family, [case])
        if isinstance(expected, str):
            return f"the other release: {expected}"
        _same([run(model, batch, attention_mask=mask, do_sample=False)], [expected])
        return "equal to the other release's"
    both = run(model, batch, attention_mask=mask, do_sample=False, **own)
    _same([[both[0]], [both[1]]], [run(model, row, do_sample=False) for row in (batch[:1], batch[1:, 5:])])
    return "equal to the rows alone"


def padded(family: Family) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Return a batch of two rows, the second with padding on the left, its mask, and the case for the oracle."""
    batch = torch.cat([prompt(family), nn.functional.pad(prompt(family, 19)[:, -7:], (5, 0))])
    mask = torch.ones_like(batch)
    mask[1, :5] = 0
    case = {"do_sample": False, "_mask": mask.tolist(), "_ids": batch.tolist(), "_dtype": "float32"}
    return batch, mask, case


def _same(got: list[Any], expected: list[Any]) -> None:
    for number, (one, other) in enumerate(zip(got, expected, strict=True)):
        if one != other:
            raise ValueError(f"case {number}: {one} and not {other}")


STEPS: dict[str, Callable[[Family], str]] = {
    "24 greedy tokens": greedy,
    "sampling": sampling,
    "beam search": beams,
    "left padding": padding,
}
