"""Rounding: how a merged value becomes one of the dtype that is written, once."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

from shardload.errors import UsageError, Wording

RoundingKind = Literal["nearest", "stochastic"]

_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}
"""Bits of an fp32 mantissa that the narrow dtype has no place for."""

_SMALLEST_NORMAL = 2.0**-14  # of fp16; below it the steps are all of 2^-24
_SUBNORMAL_STEP = 2.0**-24


class Rounding:
    """Rounds one tensor, block after block in the order of its rows.

    "nearest" is to nearest, ties to even. "stochastic" goes up or down with probabilities that make the expected
    value exact (Croci et al., Stochastic rounding, 2022), so that deltas below half a step survive on average; its
    bits come from `seed` and the tensor's name, so that the same call gives the same bytes on any machine.
    """

    def __init__(self, kind: RoundingKind, seed: int, name: str) -> None:
        self.kind = kind
        self._random = torch.Generator()
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        self._random.manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    @property
    def is_in_order(self) -> bool:
        """Whether blocks have to come in their order, from one thread: random bits are drawn for each."""
        return self.kind == "stochastic"

    def __call__(self, wide: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return a block in `dtype`; the same object where it has it already."""
        dropped = _DROPPED_BITS.get(dtype)
        if self.kind == "nearest" or dropped is None or wide.dtype == dtype:
            return wide.to(dtype)
        single = wide.to(torch.float32).contiguous()
        noise = torch.randint(0, 1 << dropped, single.shape, generator=self._random, dtype=torch.int32)
        noise = noise.to(single.device)
        # Adding to the magnitude's bits and cutting them off goes up as often as the rest says; the cast is exact.
        bits = single.view(torch.int32) + noise
        rounded = (bits & -(1 << dropped)).view(torch.float32)
        if dtype == torch.float16:
            steps = torch.floor(single / _SUBNORMAL_STEP + noise / (1 << dropped))
            rounded = torch.where(single.abs() < _SMALLEST_NORMAL, steps * _SUBNORMAL_STEP, rounded)
        return rounded.to(dtype)


def check_rounding(kind: str) -> RoundingKind:
    """Return a known kind of rounding. Raises UsageError for any other."""
    if kind == "nearest":
        return "nearest"
    if kind == "stochastic":
        return "stochastic"
    raise UsageError(Wording("{rounding} is not known", rounding=kind), cure='pass "nearest" or "stochastic"')
