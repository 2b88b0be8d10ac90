"""Scheme: how the numbers of a weight are packed, and how any rows of it are made plain again."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from shardload.tensor_ref import TensorRef

Shape = tuple[int, ...]
Cut = tuple[int, int, int]
"""A part of a tensor: the dimension, the first entry, the number of entries; the arguments of `torch.narrow`."""


class BadValuesError(ValueError):
    """A stored part holds values that no packer writes; `role` names the part."""

    def __init__(self, role: str, why: str) -> None:
        super().__init__(why)
        self.role, self.why = role, why


class Scheme:
    """The packing of one weight, as a matrix: all dimensions but the last are its rows.

    A scheme is a frozen dataclass of the settings that say how to read the parts. Rows and columns are ranges in the
    whole weight, so that a block of a weight is decoded as it would be in the whole. `label` names the format;
    `is_packed` is False where the numbers are stored plain, and something is computed with them.
    """

    label: str
    is_packed: bool = True

    def window(self, rows: range, columns: range) -> tuple[range, range]:
        """Return the smallest block around these rows and columns that can be decoded alone."""
        return rows, columns

    def cuts(self, rows: range, columns: range) -> Mapping[str, tuple[Cut, ...]]:
        """Return what to cut of each part for a block that `window` returned; parts without an entry stay whole."""
        raise NotImplementedError

    def decode(self, parts: Mapping[str, torch.Tensor], rows: range, columns: range) -> torch.Tensor:
        """Return the numbers of a block, in the dtype in which the maker's own code computes them.

        `parts` are those that `cuts` cut. Raises BadValuesError.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Weight:
    """A packed weight that was recognised: the name of the plain weight, its shape, and its stored parts by role.

    The first part is the one with the packed numbers. `turned`: the model holds the matrix with its last two dimensions
    exchanged. `beside` are stored tensors of the packing that nothing is read from. `of_layer`: a module that took the
    place of a layer was packed, so its rows are the outputs whatever the order of the layer's own weight is.
    """

    name: str
    scheme: Scheme
    shape: Shape
    parts: tuple[tuple[str, TensorRef], ...]
    turned: bool = False
    beside: tuple[str, ...] = ()
    of_layer: bool = False

    @property
    def rows(self) -> int:
        """Rows of the weight as a matrix."""
        return prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Columns of the weight as a matrix."""
        return self.shape[-1]

    @property
    def stored(self) -> tuple[str, ...]:
        """The names of all stored tensors that belong to the weight."""
        return (*(ref.name for _, ref in self.parts), *self.beside)


def whole_groups(part: range, size: int, end: int) -> range:
    """Return the smallest range of whole groups of `size` around a part of `range(end)`; the last may be shorter."""
    return range(part.start // size * size, min(-(-part.stop // size) * size, end))


def require_finite(role: str, values: torch.Tensor) -> torch.Tensor:
    """Return scales, of float32. Raises BadValuesError where they are infinite or no numbers."""
    if not bool(values.isfinite().all()):
        raise BadValuesError(role, "holds values that are not finite")
    return values


def grouped(values: torch.Tensor, size: int, first: int) -> list[tuple[torch.Tensor, slice]]:
    """Return views of a matrix by groups of its columns, [rows, groups, size], each with the numbers of its groups.

    `first` is the number of the first group. The last group may be shorter: it comes in a view of its own.
    """
    rows, columns = values.shape
    count = columns // size
    views = []
    if count:
        whole = values[:, : count * size].view(rows, count, size)
        views.append((whole, slice(first, first + count)))
    if columns % size:
        views.append((values[:, None, count * size :], slice(first + count, first + count + 1)))
    return views


def scale_groups(
    values: torch.Tensor, size: int, first: int, scales: torch.Tensor, zeros: torch.Tensor | None = None
) -> None:
    """Make values (value - zero) x scale, in place: `scales` and `zeros` are [rows, groups], groups as in `grouped`."""
    for view, groups in grouped(values, size, first):
        if zeros is not None:
            view.sub_(zeros[:, groups, None])
        view.mul_(scales[:, groups, None])
