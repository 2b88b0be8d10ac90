"""The attention weights that code for transformers 4 asks layers, and stacks of them, for.

Fused attention has no weights, and since 5.0 layers hand none on. Until then a layer that was asked computed attention
in the open. So does a twin here: its modules are copies that share all parameters, and its attention keeps the weights.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import functools
import sys
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

KEPT = "kept_weights"
"""The name under which configs of a twin have the attention that keeps its weights."""
_BEFORE = "_attention_before"

_kept: contextvars.ContextVar[list[tuple[nn.Module, torch.Tensor]] | None] = contextvars.ContextVar(
    "kept", default=None
)


def call_keeping_weights(
    module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[Any, list[tuple[str, torch.Tensor]]]:
    """Call a module's `forward` on its twin; return (its output, the attentions' names and weights, in order)."""
    twin = _twin(module, {})
    names = {id(each): name for name, each in twin.named_modules()}
    with _keeping() as kept:
        output = forward(twin, *args, **kwargs)
    return output, [(names[id(each)], weights) for each, weights in kept]


def is_cross(name: str) -> bool:
    """Return whether an attention of that name attends to another sequence."""
    return any(word in name for word in ("crossattention", "cross_attn", "encoder_attn", "EncDecAttention"))


@contextlib.contextmanager
def _keeping() -> Iterator[list[tuple[nn.Module, torch.Tensor]]]:
    kept: list[tuple[nn.Module, torch.Tensor]] = []
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)


def _twin(module: nn.Module, configs: dict[int, Any]) -> nn.Module:
    """Return a copy of a tree of modules with the same parameters, buffers and hooks, and configs of its own."""
    made = copy.copy(module)
    own = vars(made)
    own["_modules"] = {
        name: each if each is None else _twin(each, configs) for name, each in module._modules.items()
    }
    for name, value in list(own.items()):
        if hasattr(type(value), "_attn_implementation"):
            own[name] = configs.setdefault(id(value), _config_of_twin(value))
    return made


def _config_of_twin(config: Any) -> Any:
    made = copy.copy(config)  # not by its setter, which goes on to parts that the copy shares
    vars(made).update({"_attn_implementation_internal": KEPT, _BEFORE: config._attn_implementation})
    return made


def attention_for(default: Any = None) -> Callable[..., Any]:
    """Return the function that computes as `default` does, a file's own attention in the open, and keeps weights."""
    return functools.partial(_attend, default)


def _attend(
    default: Any,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if vars(module.config).get(_BEFORE) != "eager":
        attention_mask = _as_fused(module, query, key, attention_mask, kwargs.get("is_causal"))
    compute = default or _in_the_open(module)
    output, weights = compute(module, query, key, value, attention_mask, *args, **kwargs)
    kept = _kept.get()
    if kept is not None and weights is not None:
        kept.append((module, weights))
    return output, weights


def _in_the_open(module: nn.Module) -> Any:
    homes = [vars(sys.modules[kind.__module__]) for kind in type(module).__mro__]
    return next(home["eager_attention_forward"] for home in homes if "eager_attention_forward" in home)


def _as_fused(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool | None,
) -> torch.Tensor | None:
    """Return the mask that is added to scores, for what fused attention takes: flags, or nothing but `is_causal`."""
    if mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        rows, columns = query.shape[2], key.shape[2]
        if not causal or rows == 1:
            return None
        mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril()[None, None]
    if mask.dtype != torch.bool:
        return mask
    lowest = torch.finfo(query.dtype).min
    return torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(~mask, lowest)
