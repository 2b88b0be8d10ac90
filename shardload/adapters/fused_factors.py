"""Factors of a tensor that is made of the weights of several adapted layers: of their rows, or of experts stacked.

Everything is stated on headers. A is the A of all layers, one below the other. B has the rows of each layer's B in the
columns of that layer's rank, and zeros elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardload.adapters.adapter import Scaling
from shardload.keymap.derived import (
    Derived,
    Filled,
    Joined,
    entries,
    join,
    leaves,
    transposed,
    unsqueezed,
)
from shardload.keymap.views import strided_view, strides_of
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardload.adapters.adapter import LoraEntry

Tensor = Derived | Filled


@dataclass(frozen=True)
class Factored:
    """The weight of one published layer, and the adapter's entry for it; None for a layer that is not adapted."""

    weight: TensorRef
    entry: LoraEntry | None


@dataclass(frozen=True)
class _Rows:
    """Rows of one published weight, each whole; `rows` is the view of them."""

    of: Factored
    rows: TensorRef


def fused(tensor: Derived, layers: Mapping[str, Factored]) -> LoraEntry | str:
    """Return the entry of a tensor that is made of the layers' weights, or why there is none ("…, another scale").

    The tensor has two dimensions, or three with the experts first.
    """
    adapted = [layers[name].entry for name in dict.fromkeys(leaf.name for leaf in leaves(tensor))]
    loras = [entry for entry in adapted if entry is not None]
    reason = _not_plain(loras)
    if reason is not None or len(tensor.shape) not in {2, 3}:
        return reason or f"{len(tensor.shape)} dimensions"
    stacked = len(tensor.shape) == 3
    matrices = [_rows(each, layers) for each in (entries(tensor, 0) if stacked else [tensor])]
    if any(rows is None for rows in matrices):
        return "parts that are no rows"
    first = loras[0]
    rank = max(sum(_rank(layer) for layer in _distinct(rows)) for rows in matrices if rows is not None)
    pairs = [_pair(rows, rank, first.a.dtype) for rows in matrices if rows is not None]
    scale = first.scaling.of(first.rank_by_shapes())
    made = replace(first, scaling=Scaling(fixed=scale), stated_rank=None, depth=0, peft_version=(0, 19))
    a, b = join([a for a, _ in pairs], 0), pairs[0][1]
    if stacked:
        b = join([unsqueezed(each, 2) for _, each in pairs], 2)
    assert not isinstance(a, Filled)
    assert not isinstance(b, Filled)
    return replace(made, a=a, b=b, experts_last=stacked)


def _not_plain(loras: Sequence[LoraEntry]) -> str | None:
    """Return why layers can't share one pair of factors, or None."""
    if any(entry.magnitude is not None or entry.bias is not None for entry in loras):
        return "one part, for which DoRA and lora_bias are not defined,"
    if any(entry.initial is not None or entry.merged or entry.columns for entry in loras):
        return "one part, which takes plain LoRA only,"
    if len({(entry.scaling.of(entry.rank_by_shapes()), entry.dropout) for entry in loras}) > 1:
        return "one part, of which the adapter scales parts differently,"
    return None


def _rows(matrix: Tensor, layers: Mapping[str, Factored]) -> list[_Rows] | None:
    """Return the rows that a matrix consists of, or whose transpose it is; None if it is made in another way."""
    for each in (matrix, transposed(matrix, 0, 1)):
        pieces = each.parts if isinstance(each, Joined) and each.dim == 0 else (each,)
        found = [_whole_rows(piece, layers) for piece in pieces]
        if all(one is not None for one in found):
            return [one for one in found if one is not None]
    return None


def _whole_rows(piece: Tensor, layers: Mapping[str, Factored]) -> _Rows | None:
    if not isinstance(piece, TensorRef):
        return None
    layer = layers[piece.name]
    if len(piece.shape) != 2 or len(layer.weight.shape) != 2:
        return None
    width = layer.weight.shape[1]
    step, one = strides_of(piece)
    whole = piece.shape[1] == width and one == 1 and not step % width
    return _Rows(layer, piece) if whole and not (piece.span.start // 4) % width else None


def _pair(rows: Sequence[_Rows], rank: int, code: str) -> tuple[Tensor, Tensor]:
    """Return A (rank, in) and B (out, rank) of one matrix; ranks that no layer takes are zeros."""
    width = rows[0].of.weight.shape[1]
    places: dict[str, int] = {}
    parts: list[Tensor] = []
    used = 0
    for layer in _distinct(rows):
        places[layer.weight.name] = used
        used += _rank(layer)
        if layer.entry is not None:
            parts.append(layer.entry.a)
    if used < rank:
        parts.append(Filled(code, (rank - used, width)))
    return join(parts, 0), join([_block(each, places[each.of.weight.name], rank, code) for each in rows], 0)


def _block(rows: _Rows, place: int, rank: int, code: str) -> Tensor:
    """Return some rows of B in the columns of their layer's rank."""
    count = rows.rows.shape[0]
    if rows.of.entry is None:
        return Filled(code, (count, rank))
    b, own = rows.of.entry.b, _rank(rows.of)
    assert isinstance(b, TensorRef)
    width = rows.of.weight.shape[1]
    step = strides_of(rows.rows)[0] // width
    start = rows.rows.span.start // 4 // width
    parts: list[Tensor] = [strided_view(b, (count, own), (step * own, 1), start * own)]
    if place:
        parts.insert(0, Filled(code, (count, place)))
    if place + own < rank:
        parts.append(Filled(code, (count, rank - place - own)))
    return join(parts, 1)


def _distinct(rows: Sequence[_Rows]) -> list[Factored]:
    return list({each.of.weight.name: each.of for each in rows}.values())


def _rank(layer: Factored) -> int:
    return 0 if layer.entry is None else layer.entry.a.shape[0]
