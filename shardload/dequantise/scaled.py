"""Scaled: numbers of 8 or 4 bits by themselves, in blocks that have one scale each: fp8, int8, MXFP4 and others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from shardload.dequantise.bits import looked_up
from shardload.dequantise.scheme import Scheme, require_finite, scale_groups, whole_groups

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from shardload.dequantise.scheme import Cut

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The values of E2M1: a sign, two bits of exponent, one of mantissa."""
INT4 = (*range(8), *range(-8, 0))
"""The values of two's complement in 4 bits."""


@dataclass(frozen=True)
class Scaled(Scheme):
    """Matrices of `height` rows and `width` columns, one below the other, in blocks of `block` rows and columns.

    `numbers` is "fp8", "int8", "fp4" (two in a byte, the low one first) or "int4" (the high one first). The scales of a
    matrix are a grid of its blocks, whose last ones may be cut; they are multiplied by `factor` afterwards. Bytes as
    scales are exponents of two. `in_scales_dtype`: the numbers come out in the dtype of the scales, else in float32.
    """

    label: str
    numbers: str
    height: int
    width: int
    block: tuple[int, int]
    factor: float = 1.0
    in_scales_dtype: bool = False
    zeros: bool = False

    @property
    def _in_a_byte(self) -> int:
        return 2 if self.numbers in {"fp4", "int4"} else 1

    def window(self, rows: range, columns: range) -> tuple[range, range]:
        """Return whole blocks along the columns, and whole bytes."""
        size = max(self.block[1], self._in_a_byte)
        return rows, whole_groups(columns, size, self.width)

    def _grid_row(self, row: int) -> int:
        """Return the row of the scales that a row of the weight has."""
        tall = -(-self.height // self.block[0])
        return row // self.height * tall + row % self.height // self.block[0]

    def cuts(self, rows: range, columns: range) -> Mapping[str, tuple[Cut, ...]]:
        """Return the block, and the rows of its scales."""
        many = self._in_a_byte
        first = self._grid_row(rows.start)
        grid = (0, first, self._grid_row(rows.stop - 1) + 1 - first)
        cuts: dict[str, tuple[Cut, ...]] = {
            "numbers": ((0, rows.start, len(rows)), (1, columns.start // many, -(-len(columns) // many))),
            "scales": (grid,),
        }
        if self.zeros:
            cuts["zeros"] = (grid,)
        return cuts

    def decode(self, parts: Mapping[str, torch.Tensor], rows: range, columns: range) -> torch.Tensor:
        """Return (number - zero) x scale x factor."""
        import torch

        values = self._values(parts["numbers"])
        stored = parts["scales"]
        scales = _exponents(stored) if stored.dtype == torch.uint8 else stored.float()
        require_finite("scales", scales)
        zeros = parts["zeros"].float() if self.zeros else None
        if self.block[0] != 1:
            first = self._grid_row(rows.start)
            index = torch.tensor([self._grid_row(row) - first for row in rows], device="cpu")
            scales = scales.index_select(0, index)
            zeros = None if zeros is None else zeros.index_select(0, index)
        scale_groups(values, self.block[1], columns.start // self.block[1], scales, zeros)
        if self.factor != 1.0:
            values *= self.factor
        return values.to(stored.dtype) if self.in_scales_dtype else values

    def _values(self, stored: torch.Tensor) -> torch.Tensor:
        import torch

        if self.numbers == "fp8":
            return fp8_values(stored)
        if self.numbers == "int8":
            return stored.float()
        packed = stored.contiguous().view(torch.uint8)
        if self.numbers == "fp4":
            return looked_up(packed, FP4)
        return looked_up(packed, INT4, high_first=True)


def fp8_values(stored: torch.Tensor) -> torch.Tensor:
    """Return numbers of fp8 in float32."""
    import torch

    index = stored.contiguous().view(torch.uint8).view(-1).to(torch.int32)
    return _fp8_table(stored.dtype).index_select(0, index).view(stored.shape)


@lru_cache(maxsize=8)
def _fp8_table(dtype: torch.dtype) -> torch.Tensor:
    """Return the value of each byte: to look them up is four times as fast as torch's own cast."""
    import torch

    with torch.inference_mode(mode=False):
        return torch.arange(256, dtype=torch.uint8, device="cpu").view(dtype).float()


def _exponents(stored: torch.Tensor) -> torch.Tensor:
    """Return the powers of two that bytes stand for; 255 is no number."""
    import torch

    return (stored.float() - 127).exp2().masked_fill(stored == 255, torch.nan)
