"""Notes on weights in several floating dtypes, with which a forward pass may fail, for a load that keeps them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload.errors import Wording
from shardload.keymap import Joined, leaves
from shardload.keys import collapse
from shardload.model.shell import modules_of
from shardload.tensor_ref import TORCH_NAMES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from shardload.keymap import Derived

_COMPUTE = frozenset({nn.Linear, nn.Bilinear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d})
"""Modules that compute in the dtype of their weights: an input in another one is an error, a result in it the next."""

_SHOWN = 4


def joined_notes(tensors: Iterable[tuple[str, Derived]]) -> list[str]:
    """Return notes on tensors that are joined from parts of several dtypes, in one that holds them all."""
    wider: dict[tuple[str, str], list[str]] = {}
    for name, tensor in tensors:
        parts = {ref.dtype for ref in leaves(tensor)} if isinstance(tensor, Joined) else set()
        if len(parts) > 1:
            shown = " and ".join(sorted(TORCH_NAMES.get(code, code) for code in parts))
            wider.setdefault((shown, TORCH_NAMES.get(tensor.dtype, tensor.dtype)), []).append(name)
    return [
        f"{', '.join(collapse(names)[:_SHOWN])}: joined in {into} from parts that are stored in {parts}"
        for (parts, into), names in wider.items()
    ]


def mixed_notes(model: nn.Module, kept: Collection[str]) -> list[str]:
    """Return a note on the parameters whose dtype most others can't be computed with; none where the classes cast.

    `kept` are the names whose dtype the class itself decides. A norm of a class of its own is tried on zeros of
    one row: its result has to come out in the dtype of its input.
    """
    sizes: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            sizes[parameter.dtype] += parameter.nbytes
    if len(sizes) < 2:
        return []
    common = sizes.most_common(1)[0][0]
    tried: dict[tuple[object, ...], bool] = {}
    wrong: list[tuple[str, torch.dtype]] = []
    for prefix, module in modules_of(model):
        own = {name: p for name, p in module._parameters.items() if p is not None and p.is_floating_point()}
        others = [(prefix + name, p.dtype) for name, p in own.items() if p.dtype != common]
        if not others or any(name in kept for name, _ in others) or hasattr(module, "of_an_adapter"):
            continue
        key = (type(module), *((name, p.dtype, p.shape) for name, p in own.items()))
        if key not in tried:
            tried[key] = _can_compute(module, own, common)
        if not tried[key]:
            wrong += others
    return [_note(wrong, common)] if wrong else []


def _can_compute(module: nn.Module, own: dict[str, nn.Parameter], dtype: torch.dtype) -> bool:
    """Whether a module takes inputs of this dtype and returns such; True where nothing is known of it."""
    if type(module) in _COMPUTE:
        return False
    shapes = {p.shape for p in own.values()}
    is_norm = "norm" in type(module).__name__.lower() and not module._modules and not module._buffers
    return not (is_norm and len(shapes) == 1 and len(shapes.pop()) == 1) or _tried(module, own, dtype)


def _tried(module: nn.Module, own: dict[str, nn.Parameter], dtype: torch.dtype) -> bool:
    table: dict[str, Any] = module._parameters
    before = dict(table)
    some = next(iter(own.values()))
    row = torch.zeros(1, 1, len(some), dtype=dtype, device=some.device)
    try:
        table.update(
            {name: nn.Parameter(torch.zeros_like(p), requires_grad=False) for name, p in own.items()}
        )
        with torch.no_grad():
            result = module.forward(row)
    except RuntimeError as error:
        return "dtype" not in str(error) and "scalar type" not in str(error)
    except Exception:  # noqa: BLE001 - a forward of another form: nothing is known of it
        return True
    finally:
        table.update(before)
    return not isinstance(result, torch.Tensor) or result.dtype == dtype


def _note(wrong: list[tuple[str, torch.dtype]], common: torch.dtype) -> str:
    names = collapse([name for name, _ in wrong])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    plain = str(common).removeprefix("torch.")
    stored = ", ".join(sorted({str(dtype).removeprefix("torch.") for _, dtype in wrong}))
    return Wording(
        "{0}: stored as {1}, most others as {2}: a forward pass may fail on mixed dtypes; {dtype} loads all in one",
        ", ".join(names[:_SHOWN]) + more,
        stored,
        plain,
        dtype=plain,
    )
