"""Numbers of fewer bits than a byte, in bytes and words, low bits first."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def looked_up(packed: torch.Tensor, values: Sequence[float], *, high_first: bool = False) -> torch.Tensor:
    """Return the float32 value of each number in bytes: the last dimension grows by 8 / bits.

    `values` are those of the numbers 0 to 2^bits - 1. Looking up a byte gives all numbers in it at once, which is
    several times as fast as shifts and masks.
    """
    import torch

    table = _table(tuple(values), high_first)
    many = table.shape[1]
    pieces = table.view(torch.int64 if many % 2 == 0 else torch.int32)
    pieces = pieces.view(-1) if pieces.shape[1] == 1 else pieces  # several times as fast
    index = packed.reshape(-1).to(torch.int32)
    found = pieces.index_select(0, index)
    return found.view(torch.float32).view(*packed.shape[:-1], packed.shape[-1] * many)


@lru_cache(maxsize=64)
def _table(values: tuple[float, ...], high_first: bool) -> torch.Tensor:
    """Return the values of the numbers in each byte."""
    import torch

    bits = len(values).bit_length() - 1
    shifts = range(0, 8, bits)
    order = list(reversed(shifts)) if high_first else list(shifts)
    with torch.inference_mode(mode=False):
        rows = [[float(values[(byte >> shift) % len(values)]) for shift in order] for byte in range(256)]
        return torch.tensor(rows, dtype=torch.float32, device="cpu")


def _spread(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Return numbers of 2 or 4 bits as a byte each, low bits first: the last dimension grows by 8 / bits.

    All numbers of a byte are moved at once within a wider whole number, which is faster than to look them up.
    """
    import torch

    if bits == 4:
        wide = packed.to(torch.int16)
        wide |= wide << 4
        wide &= 0x0F0F
    else:
        wide = packed.to(torch.int32)
        wide |= wide << 12
        wide &= 0x000F000F
        wide |= wide << 6
        wide &= 0x03030303
    return wide.view(torch.uint8)


def numbers(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the numbers in 32-bit words as float32: 32 / bits of them in a word, or 32 in three words of 3 bits."""
    import torch

    if bits == 3 and words.shape[-1] % 3:
        words = torch.nn.functional.pad(words, (0, -words.shape[-1] % 3))
    packed = words.contiguous().view(-1).view(torch.uint8).view(*words.shape[:-1], -1)
    if bits == 8:
        return packed.float()
    if bits in {2, 4}:
        return _spread(packed, bits).float()
    if bits == 1:
        return looked_up(packed, range(2))
    rows = packed.reshape(-1, 3).to(torch.int32)
    joined = rows[:, 0] | rows[:, 1] << 8 | rows[:, 2] << 16  # eight numbers of 3 bits
    shifts = torch.arange(0, 24, 3, dtype=torch.int32, device="cpu")
    return ((joined[:, None] >> shifts) & 7).float().view(*words.shape[:-1], -1)
