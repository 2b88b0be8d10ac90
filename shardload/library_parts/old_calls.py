"""Layers of the library that answer the calls of code for transformers 4 as its layers did.

Until 4.45 attention made its rotary tables itself, and until 4.47 it returned three values; a layer returned a tuple.
Today's layer returns the tensor alone, of which an older loop's `layer_outputs[0]` would take the first row in silence.
A call from the library's own files is answered as its file is written.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any

import torch

from shardload.library_parts.attention_weights import call_keeping_weights, is_cross
from shardload.transformers_shim.cache_utils import DynamicCache
from shardload.transformers_shim.front import unpacks_two
from shardload.transformers_shim.host import is_repo_module
from shardload.transformers_shim.modeling_layers import GradientCheckpointingLayer
from shardload.transformers_shim.utils import ModelOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from torch import nn

# A file with one of these was written for layers as they are since 5.0.
_NEW_SPELLING = ("capture_outputs", "merge_with_config_defaults", "PreTrainedConfig")
_OLD_ORDER = (
    "hidden_states", "attention_mask", "position_ids", "past_key_value", "output_attentions", "use_cache",
    "cache_position", "position_embeddings",
)  # fmt: skip
_OLDER_ATTRIBUTES = {
    "num_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "hidden_size": "hidden_size",
    "max_position_embeddings": "max_position_embeddings",
    "rope_theta": "rope_theta",
}
_BETWEEN = (".old_calls", ".gone_arguments", ".modeling_layers")
KEEPS_ITS_CACHE = "_keeps_its_cache"
"""An attribute of layers that were made without a number: their cache is a pair of keys and values, theirs alone."""

# The attention weights of the layer that is called as of old, where it is asked for them.
_weights: contextvars.ContextVar[list[Any] | None] = contextvars.ContextVar("weights", default=None)


def dress_attention(kind: Any, rotary: Any) -> None:
    """Let an attention class make its rotary tables, and return the cache, for a call that knows of neither."""
    forward, names = kind.forward, list(inspect.signature(kind.forward).parameters)[1:]
    takes_one_cache = "past_key_value" in names

    @functools.wraps(forward)
    def answering(self: Any, *args: Any, **kwargs: Any) -> Any:
        is_old = "past_key_value" in kwargs and not takes_one_cache
        if not is_old and ("position_embeddings" in kwargs or _has_tables(args, names)):
            return _with_weights(self, forward, args, kwargs)
        caller = _caller()
        given = _named(_OLD_ORDER, args, kwargs)
        cache = _renamed_cache(given, names)
        if given.get("position_embeddings") is None and rotary is not None:
            given["position_embeddings"] = _tables(self, rotary, given, cache)
        if "attention_mask" in names:
            given.setdefault("attention_mask", None)
        if given.get("output_attentions"):
            self = _eager(self)  # a copy that shares the weights
        output, weights = forward(self, **given)[:2]
        two = caller is not None and unpacks_two(caller)
        return (output, weights) if two else (output, weights, cache)

    kind.forward = answering
    _add_older_attributes(kind, rotary)


def _with_weights(module: Any, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    wanted = _weights.get()
    if wanted is None:
        return forward(module, *args, **kwargs)
    output = forward(_eager(module), *args, **kwargs)
    wanted.append(output[1])
    return output


def dress_layer(kind: Any, rotary: Any) -> None:
    """Let a layer return a tuple to code that expects one."""
    forward, names = kind.forward, list(inspect.signature(kind.forward).parameters)[1:]
    rotates = "position_embeddings" in names
    takes_one_cache = "past_key_value" in names

    @functools.wraps(forward)
    def answering(self: Any, *args: Any, **kwargs: Any) -> Any:
        renamed = "past_key_value" in kwargs and not takes_one_cache
        told = not rotates or "position_embeddings" in kwargs or _has_tables(args, names)
        if told and not renamed:
            if kwargs.get("output_attentions") and _is_older(_caller()):
                output, kept = call_keeping_weights(self, forward, args, kwargs)
                weighed = tuple(each for _, each in kept)
                return (output, *weighed) if isinstance(output, torch.Tensor) else output
            output = forward(self, *args, **kwargs)
            return (output,) if isinstance(output, torch.Tensor) and _is_older(_caller()) else output
        given = _named(_OLD_ORDER, args, kwargs)
        keeps_its_cache = vars(self).get(KEEPS_ITS_CACHE, False)
        if keeps_its_cache and given.get("use_cache"):
            pair = given.pop("past_key_value", None)
            given["past_key_value"] = DynamicCache.from_legacy_cache(pair and (pair,))
        cache = _renamed_cache(given, names)
        if given.get("position_embeddings") is None and rotary is not None:
            given["position_embeddings"] = _tables(self, rotary, given, cache)
        wants_weights = "output_attentions" not in names and given.pop("output_attentions", None)
        token = _weights.set([] if wants_weights else None)
        try:
            output = forward(self, **given)
            weights = _weights.get()
        finally:
            _weights.reset(token)
        made = (output,) if isinstance(output, torch.Tensor) else output
        if not isinstance(made, tuple) or any(each is cache and cache is not None for each in made):
            return output
        kept = cache[0] if keeps_its_cache and cache is not None else cache
        return (*made, *(weights[:1] if weights else ()), *((kept,) if given.get("use_cache") else ()))

    kind.forward = answering


def dress_stack(kind: Any) -> None:
    """Let a stack return hidden states and attention weights to code that asks: since 5.0 whole models alone do."""
    forward = kind.forward
    if "output_hidden_states" in inspect.signature(forward).parameters:
        return

    @functools.wraps(forward)
    def answering(self: Any, *args: Any, **kwargs: Any) -> Any:
        states, weights = (kwargs.get(f"output_{name}") for name in ("hidden_states", "attentions"))
        if not (states or weights) or not _is_older(_caller()):
            return forward(self, *args, **kwargs)
        kept: list[tuple[str, torch.Tensor]] = []
        with _inputs_of_layers(self) if states else contextlib.nullcontext() as found:
            if weights:
                output, kept = call_keeping_weights(self, forward, args, kwargs)
            else:
                output = forward(self, *args, **kwargs)
        if not isinstance(output, ModelOutput):
            return output
        if found is not None and output.get("hidden_states") is None:
            output["hidden_states"] = (*found, output[0])
        if kept and not output.get("attentions"):
            output["attentions"] = tuple(each for name, each in kept if not is_cross(name))
        crossed = tuple(each for name, each in kept if is_cross(name))
        if crossed and not output.get("cross_attentions"):
            output["cross_attentions"] = crossed
        return output

    kind.forward = answering


@contextlib.contextmanager
def _inputs_of_layers(stack: nn.Module) -> Iterator[list[Any]]:
    found: list[Any] = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda _layer, given, named: found.append(given[0] if given else named["hidden_states"]),
            with_kwargs=True,
        )
        for layer in stack.modules()
        if isinstance(layer, GradientCheckpointingLayer)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _has_tables(args: tuple[Any, ...], names: list[str]) -> bool:
    """Return whether the rotary tables are among the arguments by position; `use_cache` once stood in their place."""
    place = names.index("position_embeddings")
    return len(args) > place and args[place] is not None and not isinstance(args[place], bool)


def _named(order: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an old call by name."""
    if len(args) > len(order):
        raise TypeError(f"{len(args)} arguments by position, and transformers 4 had {len(order)}")
    return {**dict(zip(order, args, strict=False)), **kwargs}


def _renamed_cache(given: dict[str, Any], names: list[str]) -> Any:
    """Put the cache under the name that the file's own forward has for it, and return it."""
    cache = given.pop("past_key_value", given.get("past_key_values"))
    given["past_key_value" if "past_key_value" in names else "past_key_values"] = cache
    return cache


def _tables(module: Any, rotary: Any, given: dict[str, Any], cache: Any) -> Any:
    """Return (cosines, sines) as the family's own rotary embedding makes them for these positions."""
    states, positions = given["hidden_states"], given.get("position_ids")
    if positions is None:
        past = 0 if cache is None else cache.get_seq_length()
        positions = torch.arange(past, past + states.shape[1], device=states.device)[None]
    return _rotary_of(module, rotary).to(states.device)(states, positions)


def _rotary_of(module: Any, rotary: Any) -> Any:
    """Return the rotary embedding of a layer; it is no submodule, for no checkpoint has tensors of it."""
    held = vars(module).get("_rotary_of_old_calls")
    if held is None:
        config = getattr(module, "config", None) or module.self_attn.config
        held = vars(module)["_rotary_of_old_calls"] = rotary(config=config)
    return held


def _eager(module: Any) -> Any:
    """Return a module with the same weights that computes attention in the open, and so has weights to return."""
    if getattr(module.config, "_attn_implementation", "eager") == "eager":
        return module
    twin = copy.copy(module)
    vars(twin)["config"] = copy.copy(module.config)
    twin.config._attn_implementation = "eager"
    return twin


def _add_older_attributes(kind: Any, rotary: Any) -> None:
    """Let code read `num_heads`, `rotary_emb` and others, which attention had until 4.47."""
    before = kind.__getattr__

    def older(self: Any, name: str) -> Any:
        try:
            return before(self, name)
        except AttributeError:
            if name == "rotary_emb" and rotary is not None:
                return _rotary_of(self, rotary)
            config = vars(self).get("config")
            if name in _OLDER_ATTRIBUTES and hasattr(config, _OLDER_ATTRIBUTES[name]):
                return getattr(config, _OLDER_ATTRIBUTES[name])
            raise

    kind.__getattr__ = older


def _caller() -> FrameType | None:
    """Return the frame that called the module: the nearest that is neither torch's nor of what parts are dressed in."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if not name.startswith("torch.") and not name.endswith(_BETWEEN):
            return frame
        frame = frame.f_back
    return None


def called_by_older() -> bool:
    """Return whether the call of a module comes from a repo's code in the spelling of transformers 4."""
    return _is_older(_caller())


def _is_older(caller: FrameType | None) -> bool:
    """Return whether the caller is a repo's code in the spelling of transformers 4."""
    name = str(caller.f_globals.get("__name__", "")) if caller is not None else ""
    if caller is None or not is_repo_module(name) or ".library_parts." in name:
        return False
    return not _is_new(name)


@functools.cache
def _is_new(name: str) -> bool:
    module: Any = sys.modules.get(name)
    source = module.__loader__.get_source(name) if module is not None else ""
    return any(word in source for word in _NEW_SPELLING)
