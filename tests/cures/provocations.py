"""Checkpoints that are refused, each with the weights that a cure has to load."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from tests.cures import models
from tests.tiny import random_state, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Provocation:
    """`write(folder)` writes a checkpoint and returns the states of which a cure may load one, by the model's keys."""

    name: str
    code: str
    model: Any
    write: Callable[[Path], list[State]]
    needs_choice: bool = False  # no cure can be typed without knowing more than the files say
    keywords: dict[str, Any] = field(default_factory=dict)


def _renamed(change: Callable[[State], State], **config: Any) -> Callable[[Path], list[State]]:
    def write(folder: Path) -> list[State]:
        state = random_state(models.Net())
        write_checkpoint(folder, change(state), shards=1, config=config or {"hidden_size": 4})
        return [state]

    return write


def _lightning(state: State) -> State:
    return {**{f"model.{key}": value for key, value in state.items()}, "criterion.pos_weight": torch.ones(1)}


def _averaged(state: State) -> State:
    return {**{f"module.{key}": value for key, value in state.items()}, "n_averaged": torch.tensor(3)}


def _headless(state: State) -> State:
    return {f"backbone.{key}": value for key, value in state.items() if not key.startswith("head")}


def _criteria(state: State) -> State:
    more = {f"losses.{n}.{leaf}": torch.ones(5) for n in range(3) for leaf in ("a", "b")}
    return {**state, **more, "ema_step": torch.tensor(1)}


def _in_front(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}.{key}": value for key, value in state.items()}


def _words(state: State) -> State:
    return {key.replace("embed", "tok_embeddings").replace("head", "output"): v for key, v in state.items()}


def _wrapped_inside(state: State) -> State:
    return {
        key.replace("layers.", "layers._checkpoint_wrapped_module."): value for key, value in state.items()
    }


def _tall(folder: Path) -> list[State]:
    state = random_state(models.Tall())
    write_checkpoint(folder, _headless(state), shards=1)
    return [state]


def _two_sets(folder: Path) -> list[State]:
    one, two = random_state(models.Net()), random_state(models.Net(), seed=1)
    both = {**_in_front("student")(one), **_in_front("teacher")(two)}
    write_checkpoint(folder, both, shards=1)
    return [one, two]


_SPELLINGS = {
    "embed_tokens": "tok_embeddings", "input_layernorm": "attention_norm", "gate_proj": "feed_forward.w1",
    "up_proj": "feed_forward.w3", "down_proj": "feed_forward.w2", "q_proj": "attention.wq", "k_proj": "attention.wk",
    "v_proj": "attention.wv", "o_proj": "attention.wo",
}  # fmt: skip


def _spelled(more: State) -> Callable[[Path], list[State]]:
    """Return what writes a decoder whose names are too many to be typed one by one."""

    def write(folder: Path) -> list[State]:
        state = random_state(models.Trunk(models.DECODER))
        stored = {}
        for key, value in state.items():
            name = key
            for new, old in _SPELLINGS.items():
                name = name.replace(new, old)
            stored[name] = value
        write_checkpoint(folder, {**stored, **more}, shards=1, config=models.DECODER)
        return [state]

    return write


def _two_for_one_path(folder: Path) -> list[State]:
    sets = [(name, random_state(models.Net(), seed=n)) for n, name in enumerate(("online", "target"))]
    write_checkpoint(
        folder, {k: v for name, state in sets for k, v in _in_front(name)(state).items()}, shards=1
    )
    return [_in_front("net")(state) for _, state in sets]


def _perhaps_tied(change: Callable[[State], State]) -> Callable[[Path], list[State]]:
    """Return what writes a decoder without its output layer, where the config does not say that it is tied."""

    def write(folder: Path) -> list[State]:
        state = random_state(models.Decoder(models.DECODER))
        del state["lm_head.weight"]
        write_checkpoint(folder, change(state), shards=1, config=models.DECODER)
        return [{**state, "lm_head.weight": state["embed_tokens.weight"]}]

    return write


def _pickled(change: Callable[[State], dict[str, Any]]) -> Callable[[Path], list[State]]:
    def write(folder: Path) -> list[State]:
        state = random_state(models.Net())
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        torch.save(change(state), folder / "pytorch_model.bin")
        return [state]

    return write


def _two_sets_and_a_loss(folder: Path) -> list[State]:
    one, two = random_state(models.Net()), random_state(models.Net(), seed=1)
    both = {**_in_front("student")(one), **_in_front("teacher")(two)}
    write_checkpoint(folder, {**both, "loss.center": torch.ones(3)}, shards=1)
    return [one, two]


def _halves(folder: Path) -> list[State]:
    state = random_state(models.Stacked())
    one, two = state["mlp.gate_up_proj.weight"].chunk(2)
    rest = {key: value for key, value in state.items() if "gate_up" not in key}
    write_checkpoint(folder, {**rest, "mlp.a.weight": one, "mlp.b.weight": two}, shards=1)
    return [state]


def _eight_bits(state: State) -> State:
    """Whole numbers with scales under a name that no known quantiser has."""
    found = {}
    for key, value in state.items():
        found[key] = (value * 9).to(torch.int8) if "q_proj" in key else value
        if "q_proj" in key:
            found[f"{key}_steps"] = torch.ones(len(value))
    return found


def _sized(field_name: str, stored: int) -> Callable[[Path], list[State]]:
    def write(folder: Path) -> list[State]:
        state = random_state(models.Sized({**models.SIZED, field_name: stored}))
        write_checkpoint(folder, state, shards=1, config=models.SIZED)
        return [state]

    return write


def _decoder(
    change: Callable[[State], State] = lambda state: state, **fields: int
) -> Callable[[Path], list[State]]:
    def write(folder: Path) -> list[State]:
        state = random_state(models.Decoder({**models.DECODER, **fields}))
        write_checkpoint(folder, change(state), shards=1, config=models.DECODER)
        return [state]

    return write


def _towers(text: dict[str, int], vision: dict[str, int]) -> Callable[[Path], list[State]]:
    """Return what writes two towers that config.json gives equal sizes."""

    def write(folder: Path) -> list[State]:
        sizes = {"text_config": {**models.DECODER, **text}, "vision_config": {**models.DECODER, **vision}}
        state = random_state(models.Towers(sizes))
        said = {"text_config": models.DECODER, "vision_config": models.DECODER}
        write_checkpoint(folder, state, shards=1, config=said)
        return [state]

    return write


def _patched(**fields: int) -> Callable[[Path], list[State]]:
    def write(folder: Path) -> list[State]:
        state = random_state(models.Patched(fields))
        write_checkpoint(folder, state, shards=1, config={"image_size": 16, "patch_size": 4})
        return [state]

    return write


def _structure(folder: Path) -> list[State]:
    state = random_state(models.Stacked())
    stored = dict(state)
    for n, part in enumerate(stored.pop("experts.down_proj")):
        stored[f"experts.{n}.down_proj"] = part
    gate, up = stored.pop("mlp.gate_up_proj.weight").chunk(2)
    stored |= {"mlp.gate_proj.weight": gate, "mlp.up_proj.weight": up}
    write_checkpoint(folder, stored, shards=1)
    return [state]


def _whole_lora(every: bool, base: str = ".base_layer") -> Callable[[State], State]:
    """Return what names the state of a PEFT model: base and adapter in one file."""

    def change(state: State) -> State:
        found = {}
        for key, value in state.items():
            path = key.removesuffix(".weight")
            adapted = path.endswith("_proj" if every else "q_proj")
            found[f"base_model.model.{path}{base if adapted else ''}.weight"] = value
            if adapted:
                for part, shape in (("A", (2, value.shape[1])), ("B", (value.shape[0], 2))):
                    found[f"base_model.model.{path}.lora_{part}.default.weight"] = torch.ones(shape)
        return found

    return change


def _with_prefix(**fields: Any) -> Callable[[Path], list[State]]:
    def write(folder: Path) -> list[State]:
        state = random_state(models.Prefixed(fields))
        write_checkpoint(folder, state, shards=1, config={"hidden_size": 4})
        return [state]

    return write


def provocations() -> Iterator[Provocation]:
    """Yield every provocation."""
    net = models.Net
    yield Provocation("keys behind a prefix", "E-WRAP", net, _renamed(_in_front("module")))
    yield Provocation("keys behind two prefixes", "E-WRAP", net, _renamed(_in_front("_orig_mod.module")))
    yield Provocation("a wrapper in the middle", "E-WRAP", net, _renamed(_wrapped_inside))
    yield Provocation("a prefix, and a loss beside the model", "E-WRAP", net, _renamed(_lightning))
    yield Provocation("an averaged model", "E-WRAP", net, _renamed(_averaged))
    yield Provocation("a trunk without a head", "E-WRAP", net, _renamed(_headless))
    yield Provocation(
        "a trunk without an output layer of the embedding's shape", "E-WRAP", models.Tall, _tall
    )
    yield Provocation("losses beside the model", "E-MISMATCH", net, _renamed(_criteria))
    yield Provocation("other words", "E-RENAME", net, _renamed(_words))
    yield Provocation("many other words", "E-RENAME", models.Trunk, _spelled({}))
    yield Provocation(
        "many other words, and a loss", "E-RENAME", models.Trunk, _spelled({"loss.center": torch.ones(3)})
    )
    yield Provocation("two whole sets", "E-AMBIGUOUS", net, _two_sets)
    yield Provocation("two sets for one path", "E-AMBIGUOUS", models.Held, _two_for_one_path)
    for name, change in {
        "": lambda state: state,
        " behind a prefix": _in_front("module"),
        ", and a loss": lambda state: {**state, "loss.center": torch.ones(3)},
    }.items():
        yield Provocation(f"a head that may be tied{name}", "E-TIE", models.Decoder, _perhaps_tied(change))
    yield Provocation("experts and a joined matrix", "E-STACK", models.Stacked, _structure)
    yield Provocation("another vocabulary", "E-VOCAB", models.Sized, _sized("vocab_size", 64))
    for name in models.SIZED:
        if name != "vocab_size":
            yield Provocation(
                f"another {name}", "E-CONFIG", models.Sized, _sized(name, 16 + models.SIZED[name])
            )
    yield Provocation("fewer heads of keys", "E-CONFIG", models.Decoder, _decoder(num_key_value_heads=1))
    yield Provocation("as many heads of keys", "E-CONFIG", models.Decoder, _decoder(num_key_value_heads=4))
    yield Provocation(
        "a wider decoder with more tokens",
        "E-CONFIG",
        models.Decoder,
        _decoder(hidden_size=64, vocab_size=90),
    )
    yield Provocation(
        "more layers behind a prefix",
        "E-LAYERS",
        models.Decoder,
        _decoder(_in_front("module"), num_hidden_layers=4),
    )
    yield Provocation(
        "a wider decoder behind a prefix",
        "E-CONFIG",
        models.Decoder,
        _decoder(_in_front("module"), hidden_size=64),
    )
    yield Provocation(
        "more layers of other sizes behind a prefix",
        "E-LAYERS",
        models.Decoder,
        _decoder(_in_front("model"), num_hidden_layers=3, num_key_value_heads=1, vocab_size=64),
    )
    yield Provocation(
        "more layers of another width behind a prefix",
        "E-CONFIG",
        models.Decoder,
        _decoder(_in_front("model"), num_hidden_layers=3, hidden_size=64),
        needs_choice=True,
    )
    for code, field_name, size in (
        ("E-LAYERS", "num_hidden_layers", 3),
        ("E-VOCAB", "vocab_size", 64),
        ("E-CONFIG", "intermediate_size", 80),
    ):
        yield Provocation(
            f"another {field_name} in one of two towers",
            code,
            models.Towers,
            _towers({}, {field_name: size}),
        )
    yield Provocation(
        "other feed-forward sizes in two towers",
        "E-CONFIG",
        models.Towers,
        _towers({"intermediate_size": 80}, {"intermediate_size": 96}),
    )
    for fields in ({"image_size": 24}, {"patch_size": 8}, {"image_size": 32, "patch_size": 8}):
        yield Provocation(f"another {' and '.join(fields)}", "E-CONFIG", models.Patched, _patched(**fields))
    yield Provocation("two whole sets, and a loss", "E-AMBIGUOUS", net, _two_sets_and_a_loss)
    yield Provocation("halves whose names say nothing", "E-MISMATCH", models.Stacked, _halves)
    yield Provocation(
        "numbers beside the tensors", "E-MISMATCH", net, _pickled(lambda state: {**state, "epoch": 3})
    )
    yield Provocation(
        "a prefix, and a dict beside the tensors",
        "E-WRAP",
        net,
        _pickled(lambda state: {**_in_front("module")(state), "module.extra": {}, "meta": {"a": 1}}),
    )
    for every in (False, True):
        yield Provocation(
            f"a LoRA with its base, on {'each' if every else 'one'} matrix",
            "E-ADAPTER",
            models.Decoder,
            _decoder(_whole_lora(every)),
        )
    yield Provocation(
        "a LoRA with its base, as old releases name it",
        "E-ADAPTER",
        models.Decoder,
        _decoder(_whole_lora(every=True, base="")),
    )
    prefixed = models.Prefixed
    yield Provocation("a prefix that the config has not", "E-CONFIG", prefixed, _with_prefix(pre_seq_len=8))
    yield Provocation(
        "a projected prefix that the config has not",
        "E-CONFIG",
        prefixed,
        _with_prefix(pre_seq_len=8, prefix_projection=True),
    )
    yield Provocation("whole numbers with scales", "E-MISMATCH", models.Decoder, _decoder(_eight_bits))
