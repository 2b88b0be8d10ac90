"""Survival: the share of a tensor's delta that is left after the rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

ENOUGH = 0.9
"""A share below this gets a warning."""


Sums = tuple[float, float, float]
"""Of one block: <M - W, D>, <D, D>, <W, W>."""


@dataclass
class Survival:
    """How much of one tensor's delta D survived between the base W and the merged, rounded tensor M.

    `share` is the projection <M - W, D> / <D, D>: 1 where all of D survived, 0 where nothing did. `relative` is
    |D| / |W|, Frobenius norms. Sums are taken in double precision over blocks of rows.
    """

    kept: float = 0.0
    delta: float = 0.0
    base: float = 0.0

    @property
    def share(self) -> float:
        """The share of the delta that survived; 1 for a delta of zero."""
        return self.kept / self.delta if self.delta else 1.0

    @property
    def relative(self) -> float:
        """The norm of the delta divided by the norm of the base."""
        return math.sqrt(self.delta / self.base) if self.base else math.inf if self.delta else 0.0

    @staticmethod
    def sums_of(wide: torch.Tensor, change: torch.Tensor, rounded: torch.Tensor) -> Sums:
        """Return the three sums of one block: the base and its change in the wide dtype, and the result."""
        flat, base = change.reshape(-1), wide.reshape(-1)
        arrived = rounded.to(wide.dtype, copy=True).sub_(wide).reshape(-1)
        return torch.dot(arrived, flat).item(), torch.dot(flat, flat).item(), torch.dot(base, base).item()

    def count(self, sums: Sums) -> None:
        """Add the sums of one block."""
        kept, delta, base = sums
        self.kept += kept
        self.delta += delta
        self.base += base


@dataclass(frozen=True)
class MergedTensor:
    """One tensor that a merge changed. `dtype` is the result's, `adapters` the number of adapters that changed it.

    `share` is None for a tensor that an adapter replaces: it has no delta.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    adapters: int
    share: float | None = None
    relative: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON-ready data."""
        return {**vars(self), "shape": list(self.shape)}

    @classmethod
    def of_dict(cls, data: dict[str, Any]) -> MergedTensor:
        """Return the row of `to_dict`."""
        return cls(**{**data, "shape": tuple(data["shape"])})


def warnings_of(rows: list[MergedTensor], *, cure: str) -> list[str]:
    """Return a warning when less than 0.9 of a delta survived; `cure` says what helps."""
    lost = [row for row in rows if row.share is not None and row.share < ENOUGH]
    if not lost:
        return []
    least = min(lost, key=lambda row: row.share or 0.0)
    return [
        (
            f"in {len(lost)} of {len(rows)} merged tensors less than {ENOUGH} of the delta survived the rounding to "
            f"{least.dtype} (least: {least.share:.2f} in {least.name}): {cure}"
        )
    ]
