"""Names that a class of transformers keeps in float32 when its model is loaded in half precision."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn

KEPT = "_keep_in_fp32_modules"
STRICT = "_keep_in_fp32_modules_strict"
_HALF = (torch.float16, torch.bfloat16)


def kept_in_float32(
    modules: Iterable[tuple[str, nn.Module]], names: Iterable[str], dtype: torch.dtype
) -> list[str]:
    """Return the names that the classes of a model's modules, by prefix, keep in float32 when it is loaded in `dtype`.

    The outermost module that has such a list decides for all names below it, as it does in transformers; an empty list,
    or None, keeps nothing.
    """
    if dtype not in _HALF:
        return []
    wanted = [
        (prefix, pattern) for prefix, module in _deciding(modules) if (pattern := _pattern(module, dtype))
    ]
    return [
        name
        for name in names
        if any(name.startswith(prefix) and pattern.search(name[len(prefix) :]) for prefix, pattern in wanted)
    ]


def _deciding(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    inside: str | None = None
    for prefix, module in modules:
        if (inside is None or not prefix.startswith(inside)) and (
            hasattr(module, KEPT) or hasattr(module, STRICT)
        ):
            inside = prefix
            yield prefix, module


def _pattern(module: Any, dtype: torch.dtype) -> re.Pattern[str] | None:
    """Return what finds the names that a module keeps: anywhere in a name in transformers 5, else as whole parts."""
    plan = getattr(module, "_get_dtype_plan", None)
    if plan is not None:
        parts = [str(part).replace("*", ".*") for part in plan(dtype)]
    else:
        listed = _listed(module, STRICT) + (_listed(module, KEPT) if dtype == torch.float16 else [])
        parts = [rf"(?:^|\.){part}(?:$|\.)" for part in listed]
    return re.compile("|".join(f"(?:{part})" for part in parts)) if parts else None


def _listed(module: Any, attribute: str) -> list[str]:
    value = getattr(module, attribute, None) or []
    return [value] if isinstance(value, str) else sorted(value)
