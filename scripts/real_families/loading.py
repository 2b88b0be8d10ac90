"""Loading, compared with the class built on the CPU and filled by torch: each step is one column of the table."""

from __future__ import annotations

import contextlib
import inspect
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from family import tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from family import Family
    from torch import nn


class ClassFailsError(Exception):
    """The repo's own class fails at something, built and filled by torch alone, and in the same way when loaded."""


def in_both(function: Callable[[nn.Module], Any], *models: nn.Module) -> list[Any]:
    """Return a function's results for the models; raises ClassFailsError where it fails in the same way for all."""
    results, errors = [], []
    for model in models:
        try:
            with torch.no_grad():
                results.append(function(model))
        except Exception as error:  # noqa: BLE001 - compared below
            errors.append(error)
    if errors and not results and len({(type(error), str(error)) for error in errors}) == 1:
        raise ClassFailsError(f"{type(errors[0]).__name__}: {str(errors[0]).strip().splitlines()[0][:70]}")
    if errors:
        raise errors[-1]
    return results


def logits(family: Family, suffix: str) -> str:
    """Compare all that a plain forward pass returns: logits, caches, features."""
    expected, got = in_both(
        lambda model: tensors(family.call(model, family.inputs(), return_dict=True)),
        family.oracle,
        family.load(suffix),
    )
    first = next(iter(got.values()))
    return same(expected, got) + f", {str(first.dtype).removeprefix('torch.')}"


def outputs(family: Family) -> str:
    """Compare hidden states and the tuple that `return_dict=False` gives."""
    models, cells = (family.oracle, family.load("bin")), []
    for name, options in (
        ("hidden states", {"output_hidden_states": True, "return_dict": True}),
        ("tuple", {"return_dict": False}),
    ):
        if family.takes(family.oracle, next(iter(options))):
            try:
                outputs = in_both(lambda m, o=options: family.call(m, family.inputs(), **o), *models)
            except ClassFailsError as error:
                cells.append(f"{name}: the class itself fails, {error}")
                continue
            beside = "" if name != "tuple" or type(outputs[0]) is tuple else f" ({type(outputs[0]).__name__})"
            cells.append(f"{name} {same(*map(tensors, outputs))}{beside}")
    return "; ".join(cells) or "the class gives neither"


def cache(family: Family) -> str:
    """Decode three tokens with the cache; also compare their logits with a pass without it."""
    if not generates(family):
        return "the class does not generate"
    if family.served_by == "transformers" or family.prompt:
        return "by its generate: see the tokens"
    results = in_both(
        lambda model: decode(family, model, family.inputs()["input_ids"], 3),
        family.oracle,
        family.load("bin"),
    )
    verdict, whole = same(*results), results[0]["ids"][:, :-1]
    try:
        (again,) = in_both(lambda model: model(input_ids=whole, **full(family, whole)), family.oracle)
    except ClassFailsError:
        return f"{verdict}; the class can't go on without it"
    difference = (again.logits[:, -1].float() - results[0]["logits 2"].float()).abs().max().item()
    return f"{verdict}; {difference:.1g} from no cache"


def generates(family: Family) -> bool:
    """Whether the class writes on from token ids with `generate`."""
    model = family.oracle
    if family.prompt:
        return True
    return (
        hasattr(model, "can_generate")
        and model.can_generate()
        and "prepare_inputs_for_generation" in dir(model)
        and not model.config.is_encoder_decoder
        and family.described.get("_generates", True)
        and family.may_generate
        and not set(family.described) - {"input_ids", "attention_mask", "use_cache"}
        and not family.inputs()["input_ids"].is_floating_point()
    )


def full(family: Family, ids: torch.Tensor) -> dict[str, Any]:
    """Return what else than ids a pass over all of them is given: a mask of ones, where the repo's inputs have one."""
    more = {name: value for name, value in family.described.items() if name != "input_ids"}
    return {**more, **({"attention_mask": torch.ones_like(ids)} if "attention_mask" in more else {})}


def training(family: Family) -> str:
    """Compare loss and gradients in float32: kept activations, and checkpointed ones in both of torch's ways."""
    counts = []
    for way in (None, {"use_reentrant": True}, {"use_reentrant": False}):
        results = []
        # A new oracle: some code keeps rotary tables of the dtype in which it ran first.
        for model in (family.make_oracle(), family.load("safetensors")):
            model.float().train()
            if not any(parameter.requires_grad for parameter in model.parameters()):
                return "no parameter of the class is to be trained"
            if way is not None and not _checkpointing(family, model, way):
                continue
            torch.manual_seed(1)
            loss = _loss(family, model)
            if not isinstance(loss, torch.Tensor):
                return "nothing that it returns has a gradient"
            loss.backward()
            gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            results.append({"loss": loss.detach(), **gradients})
        if results:
            same(*results)
            counts.append(len(results[0]) - 1)
    ways = "" if len(counts) == 3 else "; the class supports no checkpointing"
    if len(set(counts)) != 1:
        raise ValueError(f"different numbers of gradients: {counts}")
    return f"equal, {counts[0]} gradients{ways}"


def _checkpointing(family: Family, model: Any, way: dict[str, Any]) -> bool:
    """Turn gradient checkpointing on; False where the class has none, or its own method does nothing."""
    if not model.supports_gradient_checkpointing:
        return False
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=way)
    if not model.is_gradient_checkpointing and "gradient_checkpointing_enable" in _own(type(model)):
        return False
    if "input_ids" in family.inputs(torch.float32):
        with contextlib.suppress(NotImplementedError):  # the class names no embeddings
            model.enable_input_require_grads()
    assert model.is_gradient_checkpointing
    return True


def _own(cls: type) -> set[str]:
    """Return the names that a class and its bases in the repo define."""
    return {name for owner in cls.__mro__ if ".repos." in owner.__module__ for name in vars(owner)}


def _loss(family: Family, model: nn.Module) -> torch.Tensor:
    try:
        return family.loss(model)
    except (AssertionError, NameError, NotImplementedError, TypeError, ValueError) as error:
        last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        # torch's reentrant checkpoint takes no keyword arguments, whoever passes it some
        by_keyword = isinstance(error, ValueError) and last.parts[-2:] == ("utils", "checkpoint.py")
        if last.parent != family.folder.resolve() and not by_keyword:
            raise
        raise ClassFailsError(f"{type(error).__name__} in {last.name}") from error


def on_meta(family: Family) -> str:
    """List parameters, buffers and plain tensor attributes that are still on meta."""
    left = []
    for suffix in ("bin", "safetensors"):
        for path, module in family.load(suffix).named_modules():
            held = {**module._parameters, **module._buffers, **vars(module)}
            left += [f"{path}.{n}" for n, v in held.items() if isinstance(v, torch.Tensor) and v.is_meta]
    if left:
        raise ValueError(f"on meta: {', '.join(left)}")
    return "nothing"


def decode(family: Family, model: nn.Module, ids: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    """Choose the likeliest token `steps` times with the class's own hooks for generation, as `generate` calls them."""
    kwargs: dict[str, Any] = {"use_cache": True, "attention_mask": torch.ones_like(ids)}
    if hasattr(model, "_initial_cache"):
        kwargs = model._initial_cache(kwargs)
    if "cache_position" in inspect.signature(model.prepare_inputs_for_generation).parameters:
        kwargs["cache_position"] = torch.arange(ids.shape[1])
    results = {}
    for step in range(steps):
        inputs = model.prepare_inputs_for_generation(ids, **kwargs)
        inputs.setdefault("use_cache", True)
        output = family.call(model, inputs, return_dict=True)
        kwargs = model._update_model_kwargs_for_generation(output, kwargs)
        results[f"logits {step}"] = output.logits[:, -1]
        ids = torch.cat([ids, output.logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return {**results, "ids": ids}


def same(expected: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> str:
    """Return "equal" when every tensor is finite and agrees to the bit; raises ValueError naming one that is not."""
    if expected.keys() != got.keys():
        raise ValueError(f"different tensors: {sorted(expected.keys() ^ got.keys())[:4]}")
    for name, value in expected.items():
        if value.is_floating_point() and not torch.isfinite(value).all() and "logits" in name:
            raise ValueError(f"{name} of the oracle is not finite")
        if value.dtype != got[name].dtype or not equal(value, got[name]):
            raise ValueError(
                f"{name} differs by {(value.float() - got[name].float()).abs().max().item():.2g}"
            )
    return "equal"


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal, and NaN in the same places (masks and router scores have some)."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


STEPS: dict[str, Callable[[Family], str]] = {
    "import": lambda family: family.import_class(),
    "build": lambda family: family.build(),
    "shell": lambda family: family.shell(),
    ".bin logits": lambda family: logits(family, "bin"),
    ".safetensors logits": lambda family: logits(family, "safetensors"),
    "hidden states, tuples": outputs,
    "with cache": cache,
    "training": training,
    "on meta": on_meta,
}
