"""Compares loaded models with the class built on the CPU and filled by torch; each step is a column of the table."""

from __future__ import annotations

import contextlib
import copy
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
    """The repo's own class fails with the same error when torch fills it and when shardload loads it."""


def in_both(function: Callable[[nn.Module], Any], *models: nn.Module) -> list[Any]:
    """Return the results of a function for the models. Raises ClassFailsError if it fails in the same way for all."""
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
    """Compare all tensors that a forward pass returns: logits, caches, features.

    The rounding of BLAS may depend on the address of a matrix. If the results differ, the oracle is filled once more,
    with tensors at the addresses (modulo 64) that they have in the file, and the cell says so.
    """

    def answer(model: nn.Module) -> dict[str, torch.Tensor]:
        return tensors(family.call(model, family.inputs(), return_dict=True))

    loaded, beside = family.load(suffix), ""
    expected, got = in_both(answer, family.oracle, loaded)
    try:
        same(expected, got)
    except ValueError:
        (expected,) = in_both(answer, family.make_oracle(like=loaded))
        beside = " (at the file's addresses)"
    first = next(iter(got.values()))
    return same(expected, got) + f", {str(first.dtype).removeprefix('torch.')}{beside}"


def outputs(family: Family) -> str:
    """Compare hidden states, and the tuple of `return_dict=False`."""
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
    """Compare three tokens that are decoded with the cache, and their logits with those of a pass without the cache."""
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
    """Whether the class continues token ids by `generate`."""
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
    """Return the arguments beside the ids for a pass over all ids; if the repo's inputs have a mask, it is all ones."""
    more = {name: value for name, value in family.described.items() if name != "input_ids"}
    return {**more, **({"attention_mask": torch.ones_like(ids)} if "attention_mask" in more else {})}


def training(family: Family) -> str:
    """Compare loss and gradients in float32, without checkpointing and with both of torch's variants of it."""
    counts, beside = [], ""
    for way in (None, {"use_reentrant": True}, {"use_reentrant": False}):
        loaded = _gradients(family, family.load("safetensors"), way)
        # The oracle is made anew: some code keeps rotary tables in the dtype of its first run.
        expected = _gradients(family, family.make_oracle(), way)
        if isinstance(loaded, Exception) or isinstance(expected, Exception):
            if isinstance(loaded, Exception) and isinstance(expected, Exception):
                raise ClassFailsError(f"{type(expected).__name__} in {_file_of(expected)}") from expected
            raise next(one for one in (loaded, expected) if isinstance(one, Exception))
        if isinstance(loaded, str):
            return loaded
        if loaded is None or expected is None:
            continue
        try:
            same(expected, loaded)
        except ValueError:  # see `logits`
            model = family.load("safetensors")
            oracle = family.make_oracle(like=model)
            same(_gradients(family, oracle, way), _gradients(family, model, way))
            beside = " (at the file's addresses)"
        counts.append(len(loaded) - 1)
    ways = "" if len(counts) == 3 else "; the class supports no checkpointing"
    if len(set(counts)) != 1:
        raise ValueError(f"different numbers of gradients: {counts}")
    return f"equal, {counts[0]} gradients{ways}{beside}"


def _gradients(family: Family, model: Any, way: dict[str, Any] | None) -> Any:
    """Return the loss and the gradients; or a text if there is nothing to train; or the error of the class.

    None if the class does not support this checkpointing.
    """
    model.float().train()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return "no parameter of the class is to be trained"
    if way is not None and not _checkpointing(family, model, way):
        return None
    torch.manual_seed(1)
    try:
        loss = family.loss(model)
        if not isinstance(loss, torch.Tensor):
            return "nothing that it returns has a gradient"
        loss.backward()
    except Exception as error:  # noqa: BLE001 - compared with the error of the other model
        return error
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def _file_of(error: Exception) -> str:
    """Return the name of the file in which the cause of an error was raised."""
    return Path(traceback.extract_tb((error.__cause__ or error).__traceback__)[-1].filename).name


def _checkpointing(family: Family, model: Any, way: dict[str, Any]) -> bool:
    """Turn gradient checkpointing on; return False if the class has none, or if its own method does nothing."""
    if not model.supports_gradient_checkpointing:
        return False
    enable = model.gradient_checkpointing_enable
    if "gradient_checkpointing_kwargs" in inspect.signature(enable).parameters:
        enable(gradient_checkpointing_kwargs=way)
    elif way["use_reentrant"]:  # releases before 4.35 have only this variant
        enable()
    else:
        return False
    if not model.is_gradient_checkpointing and "gradient_checkpointing_enable" in _own(type(model)):
        return False
    if "input_ids" in family.inputs(torch.float32) and hasattr(model, "enable_input_require_grads"):
        with contextlib.suppress(NotImplementedError):  # the class has no input embeddings
            model.enable_input_require_grads()
    assert model.is_gradient_checkpointing
    return True


def _own(cls: type) -> set[str]:
    """Return the names that a class and its bases in the repo define."""
    return {name for owner in cls.__mro__ if ".repos." in owner.__module__ for name in vars(owner)}


def on_meta(family: Family) -> str:
    """Check that no parameter, buffer or plain tensor attribute is still on meta."""
    left = []
    for suffix in ("bin", "safetensors"):
        for path, module in family.load(suffix).named_modules():
            held = {**module._parameters, **module._buffers, **vars(module)}
            left += [f"{path}.{n}" for n, v in held.items() if isinstance(v, torch.Tensor) and v.is_meta]
    if left:
        raise ValueError(f"on meta: {', '.join(left)}")
    return "nothing"


def decode(family: Family, model: nn.Module, ids: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    """Choose the most likely token `steps` times with the class's own hooks, called as `generate` calls them."""
    kwargs: dict[str, Any] = {"use_cache": True, "attention_mask": torch.ones_like(ids)}
    if hasattr(model, "_initial_cache"):
        settings = copy.copy(model.generation_config)
        settings.max_length = ids.shape[1] + steps
        kwargs = model._initial_cache(settings, len(ids), kwargs)
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
    """Return "equal" if all logits are finite and all bits agree. Raises ValueError with the name of another tensor."""
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
    """Whether two tensors are equal, with NaN in the same places (masks and router scores contain NaN)."""
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
