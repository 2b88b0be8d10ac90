"""The matrix of formats, layers and variants: each cell a file that its own tool wrote, and that tool's logits.

`build` returns the case, or raises Impossible with the tool's own reason. What shardload makes of it is judged in
test_matrix.py; scripts/adapters_matrix.py writes the table.
"""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tests.adapters import models
from tests.adapters.models import TOKENS, VOCABULARY, WIDTH, make
from tests.adapters.tiny import save_file

DECLINABLE = ("QALoRA", "KaSA", "aLoRA", "Arrow", "CorDA", "LoRA-GA", "LoftQ", "kohya", "diffusers")
"""The only things that may be declined."""


class ImpossibleError(Exception):
    """The tool that defines the format refuses the combination itself, or has no way to write it."""


@dataclass(frozen=True)
class Cell:
    format: str
    layer: str
    variant: str

    def __str__(self):
        return f"{self.format} | {self.layer} | {self.variant}"


@dataclass
class Case:
    """A base model, an adapter file for it, and what its tool computes: attached, and merged where it can be."""

    model: nn.Module
    where: Any
    attached: torch.Tensor
    merged: torch.Tensor | None = None
    no_merge: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    tokens: torch.Tensor = field(default_factory=lambda: TOKENS)


# PEFT ---------------------------------------------------------------------------------------------------

PEFT_VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "rank and alpha patterns": {"rank_pattern": {".*": 4}, "alpha_pattern": {".*": 5}, "r": 6},
    "lora_bias": {"lora_bias": True},
    "bias = all": {"bias": "all"},
    "bias = lora_only": {"bias": "lora_only"},
    "modules_to_save": {"modules_to_save": ["score"]},
    "trainable_token_indices": {"trainable_token_indices": [1, 7, 4]},
    "saved embeddings": {},
    "resized embeddings": {},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
}
DECLINED_SETTINGS: dict[str, dict[str, Any]] = {
    "QALoRA": {"use_qalora": True, "qalora_group_size": 4},
    "KaSA": {"kasa_config": {"beta": 1e-4, "gamma": 1e-3}},
    "aLoRA": {"alora_invocation_tokens": [3, 4]},
    "Arrow": {"arrow_config": {"top_k": 2, "router_temperature": 1.0}},
    "CorDA": {"init_lora_weights": "corda", "corda_config": {"corda_method": "ipm"}},
    "LoftQ": {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
    "LoRA-GA": {"init_lora_weights": "lora_ga", "lora_ga_config": {"direction": "ArB2r"}},
}


def _peft_model(layer, variant, dtype, seed=3):
    """Return a PEFT model with trained-looking parameters, or raise ImpossibleError with PEFT's reason."""
    import peft

    base = make(_THEIRS.get(layer, layer), dtype)
    if variant == "resized embeddings":
        _resize(base, VOCABULARY + 3, dtype)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 10, **PEFT_VARIANTS[variant]}
    if layer.startswith("experts"):
        # Not as target_modules, which PEFT would need as well.
        settings |= {
            "target_modules": [],
            "target_parameters": ["body.layer.up_proj", "body.layer.down_proj"],
        }
    else:
        settings["target_modules"] = ["embed"] if layer.startswith("Embedding") else ["layer"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = peft.get_peft_model(base, peft.LoraConfig(**settings))
    except (ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
        raise ImpossibleError(_short(error)) from error
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=random, dtype=parameter.dtype) / 4)
        if variant == "saved embeddings":
            embeddings = wrapped.base_model.model.embed
            weight = getattr(embeddings, "base_layer", embeddings).weight
            weight.add_(torch.randn(weight.shape, generator=random, dtype=dtype) / 4)
    return wrapped.eval()


_THEIRS = {"Conv1D of the stand-in": "Conv1D of transformers"}
"""Layers that PEFT knows under another class; the weights are the same."""


def _short(error):
    text = " ".join(str(error).split())
    return "PEFT: " + (text if len(text) < 160 else text[:157] + "…")


def _resize(model, rows, dtype):
    random = torch.Generator().manual_seed(11)
    for name, size in (("embed", "num_embeddings"), ("head", "out_features")):
        module = getattr(model, name)
        new = torch.randn(rows, WIDTH, generator=random).to(dtype)
        new[: len(module.weight)] = module.weight.data
        module.weight = nn.Parameter(new)
        setattr(module, size, rows)


def peft_case(cell, dtype, folder, form="safetensors"):
    wrapped = _peft_model(cell.layer, cell.variant, dtype)
    options = {}
    if cell.variant in {"saved embeddings", "resized embeddings"}:
        options["save_embedding_layers"] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(folder, safe_serialization=form == "safetensors", **options)
    model = make(cell.layer, dtype)
    if cell.layer in _THEIRS:
        model.load_state_dict(make(_THEIRS[cell.layer], dtype).state_dict())
    case = Case(model, folder, *_peft_logits(wrapped))
    _rewrite(cell, case, folder, form)
    return case


def _peft_logits(wrapped, tokens=TOKENS):
    """Return PEFT's logits attached, merged (None where it refuses), and its reason."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            attached = wrapped(tokens)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ImpossibleError(_short(error)) from error
        attached = getattr(attached, "logits", attached)
        try:
            merged = copy.deepcopy(wrapped).merge_and_unload()(tokens)
        except Exception as error:  # PEFT raises whatever torch raises
            return attached, None, _short(error)
        merged = getattr(merged, "logits", merged)
        gap = ((merged - attached).abs().max() / attached.abs().max()).item()
        if gap > 1e-3:
            return attached, None, f"PEFT: merged logits differ from attached ones by {gap:.0e}"
        return attached, merged, ""


def _rewrite(cell, case, folder, form):
    """Make of PEFT's folder what the cell's form of it is."""
    if cell.format == "PEFT, named adapter":
        inner = folder / "mine"
        inner.mkdir()
        for path in [path for path in folder.iterdir() if path.is_file()]:
            path.rename(inner / path.name)
        case.options["subfolder"] = "mine"
    if cell.format == "PEFT, bare names":
        weights = folder / f"adapter_model.{form}"
        tensors = load(weights)
        weights.unlink()
        bare = {key.removeprefix("base_model.model."): value for key, value in tensors.items()}
        _write(bare, weights)


def load(path):
    from safetensors.torch import load_file

    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def _write(tensors, path):
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)


def declined_case(cell, dtype, folder):
    """A plain file whose config says that it is something else."""
    case = peft_case(Cell(cell.format, cell.layer, "plain"), dtype, folder)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text()) | DECLINED_SETTINGS[cell.variant]
    path.write_text(json.dumps(settings))
    return case


LLAMA = {
    "layer_replication": {"layer_replication": [[0, 2], [1, 3]]},
    "trainable_token_indices, tied head": {"trainable_token_indices": [1, 7, 4]},
}


def llama_case(cell, dtype, folder):
    """A Llama of transformers: with its layers repeated, or with a head tied to the embedding."""
    import peft
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=cell.variant.endswith("tied head"),
    )
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(config).to(dtype).eval()
    model = copy.deepcopy(base)
    settings = {"r": 4, "lora_alpha": 10, "target_modules": ["q_proj", "down_proj"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(base, peft.LoraConfig(**settings, **LLAMA[cell.variant]))
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=random, dtype=dtype) / 4)
    wrapped.eval().save_pretrained(folder)
    attached, merged, reason = _peft_logits(wrapped)
    if cell.variant == "layer_replication":
        merged, reason = _unshared(wrapped), ""
    return Case(model, folder, attached, merged, reason)


def _unshared(wrapped):
    """PEFT's merge adds every copy's delta to the one shared weight; on weights of their own it is right."""
    apart = copy.deepcopy(wrapped)
    for module in apart.modules():
        base = getattr(module, "base_layer", None)
        if base is not None:
            base.weight = nn.Parameter(base.weight.detach().clone())
    with torch.no_grad():
        return apart.merge_and_unload()(TOKENS).logits


def old_experts_case(cell, dtype, folder):
    """A file as PEFT 0.17 and 0.18 wrote it: every parameter taken for (experts, in, out). Oracle: the formula."""
    square = "square" in cell.layer
    model = make_experts(dtype, models.WIDTH // 2 if square else models.INNER)
    random = torch.Generator().manual_seed(3)
    rank, scale, experts = 2, 10 / 2, models.EXPERTS
    tensors, merged = {}, copy.deepcopy(model)
    for name, prefix in (("up_proj", "base_layer."), ("down_proj", "")):
        parameter = getattr(merged.body.layer, name)
        _, first, second = parameter.shape
        a = torch.randn(experts * rank, first, generator=random).to(dtype) / 4
        b = torch.randn(second, experts * rank, generator=random).to(dtype) / 4
        parts = a.view(experts, rank, first), b.view(second, rank, experts)
        parameter.data += scale * torch.einsum("eri,ore->eio", *parts)
        tensors[f"base_model.model.body.layer.{prefix}lora_A.weight"] = a
        tensors[f"base_model.model.body.layer.{prefix}lora_B.weight"] = b
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 10,
        "target_modules": [],
        "target_parameters": ["layer.up_proj", "layer.down_proj"],
        "peft_version": "0.18.1",
    }
    _folder(folder, tensors, config)
    with torch.no_grad():
        logits = merged(TOKENS)
    return Case(model, folder, logits, logits)


def make_experts(dtype, inner):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        body = lambda: models.Body(models.Experts(inner, flag=False))  # noqa: E731
        return models.Whole(body).to(dtype).eval()


def _folder(folder, tensors, config, name="adapter_model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    _write(tensors, folder / name)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))


# loralib, and the MergedLinear of PEFT 0.2 ------------------------------------------------------------

ENABLE = {"q and v": (True, False, True), "q": (True, False, False), "q, k and v": (True, True, True)}


def loralib_case(cell, dtype, folder):
    """A model of loralib's own layers over the same base weights."""
    import loralib

    model = make(cell.layer, dtype)
    plain = model.embed if cell.layer == "Embedding" else model.body.layer
    r = {"r": 4, "lora_alpha": 10, "merge_weights": True}
    enable = ENABLE.get(cell.variant.partition(", ")[2])
    if cell.layer == "Embedding":
        layer = loralib.Embedding(VOCABULARY, WIDTH, **r)
    elif enable:
        layer = loralib.MergedLinear(WIDTH, len(plain.weight), enable_lora=list(enable), **r)
    elif cell.layer.startswith("Conv"):
        cls = getattr(loralib, cell.layer.partition(",")[0])
        try:
            layer = cls(WIDTH, WIDTH, 3, padding=1, groups=plain.groups, **r)
        except Exception as error:
            raise ImpossibleError(f"loralib: {error}") from error
    else:
        layer = loralib.Linear(WIDTH, len(plain.weight), **r)
    inner = layer.conv if cell.layer.startswith("Conv") else layer
    inner.load_state_dict(plain.state_dict(), strict=False)
    theirs = copy.deepcopy(model)
    if cell.layer == "Embedding":
        theirs.embed = layer
    else:
        theirs.body.layer = layer
    theirs.to(dtype)
    random = torch.Generator().manual_seed(3)
    bias = cell.variant.partition(",")[0].partition(" = ")[2] or "none"
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name or (bias == "all" and "bias" in name):
                parameter.add_(torch.randn(parameter.shape, generator=random).to(dtype) / 4)
        if bias == "lora_only" and getattr(layer, "bias", None) is not None:
            layer.bias.add_(1)
    state = loralib.lora_state_dict(theirs, bias=bias)
    state = {"model_state_dict": state} if "envelope" in cell.variant else state
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "lora.pt")
    with torch.no_grad():
        theirs.train()
        try:
            attached = theirs(TOKENS)
        except RuntimeError as error:
            raise ImpossibleError(f"loralib: {error}") from error
        merged = theirs.eval()(TOKENS)
    return Case(model, folder / "lora.pt", attached, merged, options={"alpha": 10, "enable_lora": enable})


def peft02_case(cell, dtype, folder):
    """A file as PEFT 0.2 wrote it. Oracle: its layers, two 1x1 convolutions with two groups, from the formula."""
    model = make(cell.layer, dtype)
    enable = ENABLE.get(cell.variant.partition(", ")[2])
    random = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=random).to(dtype) / 4  # noqa: E731
    rank, scale = 4, 10 / 4
    into = WIDTH
    merged = copy.deepcopy(model)
    weight = merged.body.layer.weight
    out = len(weight)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 10, "target_modules": ["layer"], "bias": "none"}
    config |= {"merge_weights": False, "fan_in_fan_out": False, "enable_lora": None, "modules_to_save": None}
    if enable is None:
        a, b = draw(rank, into), draw(out, rank)
        weight.data += scale * b @ a
    else:
        on = sum(enable)
        a, b = draw(rank * on, into), draw(out // len(enable) * on, rank * on // 2, 1)
        product = nn.functional.conv1d(a[None], b, groups=2)[0]
        rows = torch.tensor(enable).repeat_interleave(out // len(enable))
        weight.data[rows] += scale * product
        config["enable_lora"] = list(enable)
    prefix = "base_model.model.body.layer."
    tensors = {f"{prefix}lora_A.weight": a, f"{prefix}lora_B.weight": b}
    _folder(folder, tensors, config, "adapter_model.bin")
    with torch.no_grad():
        logits = merged(TOKENS)
    return Case(model, folder, logits, logits)


# Other tools: their forward in a line or two ----------------------------------------------------------


def by_formula_case(cell, dtype, folder):
    """MiniMind, mlx-lm and torchtune, whose layers are one line of arithmetic each."""
    model = make(cell.layer, dtype)
    theirs = copy.deepcopy(model)
    table = cell.layer == "Embedding"
    path = "embed" if table else "body.layer"
    weight = theirs.embed.weight if table else theirs.body.layer.weight
    out, into = weight.shape
    random = torch.Generator().manual_seed(3)
    rank, scale = 4, 2.5
    a = torch.randn(rank, into, generator=random).to(dtype) / 4
    b = torch.randn(out, rank, generator=random).to(dtype) / 4
    magnitude = torch.rand(out, generator=random).to(dtype) + 0.5
    dora = cell.variant == "DoRA"
    tool = cell.format
    if tool == "MiniMind":
        scale = 1.0
    changed = weight.data + scale * b @ a
    if dora:
        changed = magnitude[:, None] / torch.linalg.norm(changed, dim=1, keepdim=True) * changed
    weight.data = changed
    config, options, name = None, {}, "adapters.safetensors"
    if tool == "MiniMind":
        tensors = {f"{path}.lora.A.weight": a, f"{path}.lora.B.weight": b}
        if cell.variant == "module. prefix":
            tensors = {f"module.{key}": value for key, value in tensors.items()}
        name = "lora.pth"
    elif tool == "torchtune":
        tensors = {f"{path}.lora_a.weight": a, f"{path}.lora_b.weight": b}
        tensors |= {f"{path}.magnitude": magnitude} if dora else {}
        options, name = {"alpha": scale * rank}, "adapter_0.pt"
    else:
        # mlx-lm stores both the other way round; of an embedding lora_a is (vocabulary, rank).
        pair = (b, a) if table else (a.T, b.T)
        tensors = {f"{path}.lora_a": pair[0].contiguous(), f"{path}.lora_b": pair[1].contiguous()}
        tensors |= {f"{path}.m": magnitude} if dora else {}
        parameters = {"rank": rank, "dropout": 0.0, "scale": scale}
        if cell.variant == "alpha in the config (before 0.16)":
            parameters |= {"alpha": 2.0 * rank, "scale": scale / 2.0}
        config = {
            "fine_tune_type": "dora" if dora else "lora",
            "num_layers": 2,
            "lora_parameters": parameters,
        }
    _folder(folder, tensors, config, name)
    with torch.no_grad():
        logits = theirs(TOKENS)
    return Case(model, folder / name, logits, logits, options=options)


def foreign_case(cell, dtype, folder):
    """Keys as other tools write them, to be declined."""
    keys = {
        "kohya": ("lora_unet_body_layer.lora_down.weight", "lora_unet_body_layer.lora_up.weight"),
        "diffusers": ("unet.body.layer.lora.down.weight", "unet.body.layer.lora.up.weight"),
    }[cell.format]
    tensors = {keys[0]: torch.ones(4, WIDTH, dtype=dtype), keys[1]: torch.ones(WIDTH, 4, dtype=dtype)}
    _folder(folder, tensors, None)
    model = make(cell.layer, dtype)
    return Case(model, folder, torch.empty(0))


# The table ----------------------------------------------------------------------------------------------

PEFT_LAYERS = tuple(layer for layer in models.LAYERS if not layer.startswith("query_key_value"))
FORMS = ("PEFT, named adapter", "PEFT, bare names")
FUSED = ("fused q, k, v", "query_key_value of ChatGLM-6B", "query_key_value of ChatGLM2")
LORALIB = (
    ("Linear", ("plain", "plain, envelope", "bias = all", "bias = lora_only")),
    ("Embedding", ("plain",)),
    ("Conv1d", ("plain",)),
    ("Conv2d", ("plain",)),
    ("Conv2d, groups", ("plain",)),
    ("Conv3d", ("plain",)),
    *((fused, ("plain", *(f"MergedLinear, {parts}" for parts in ENABLE))) for fused in FUSED),
)
TWO_LINES = {
    "MiniMind": (("Linear", ("plain", "module. prefix")),),
    "mlx-lm": (
        ("Linear", ("plain", "DoRA", "alpha in the config (before 0.16)")),
        ("Embedding", ("plain",)),
    ),
    "torchtune": (("Linear", ("plain", "DoRA")),),
}


def cells():
    """Yield every cell of the matrix, and the function that builds it."""
    for layer in PEFT_LAYERS:
        for variant in PEFT_VARIANTS:
            yield Cell("PEFT", layer, variant), peft_case
    for fused in FUSED[1:]:
        for variant in ("plain", "DoRA"):
            yield Cell("PEFT", fused, variant), peft_case
    for variant in DECLINED_SETTINGS:
        yield Cell("PEFT", "Linear", variant), declined_case
    for variant in LLAMA:
        yield Cell("PEFT", "Linear", variant), llama_case
    for form in FORMS:
        for layer in ("Linear", "Embedding"):
            for variant in ("plain", "DoRA", "modules_to_save"):
                yield Cell(form, layer, variant), peft_case
    for shape in ("experts (E, out, in)", "square experts (E, out, in)"):
        yield Cell("PEFT 0.17 to 0.18", shape, "plain"), old_experts_case
    yield Cell("PEFT 0.2", "Linear", "plain"), peft02_case
    for fused in FUSED:
        for parts in ENABLE:
            yield Cell("PEFT 0.2", fused, f"MergedLinear, {parts}"), peft02_case
    for layer, variants in LORALIB:
        for variant in variants:
            yield Cell("loralib", layer, variant), loralib_case
    for tool, layers in TWO_LINES.items():
        for layer, variants in layers:
            for variant in variants:
                yield Cell(tool, layer, variant), by_formula_case
    for tool in ("kohya", "diffusers"):
        yield Cell(tool, "Linear", "plain"), foreign_case
