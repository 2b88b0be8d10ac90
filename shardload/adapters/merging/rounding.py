"""Rounding: a merged value rounded once to the dtype of the result."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

from shardload.errors import UsageError, Wording

RoundingKind = Literal["nearest", "stochastic"]

_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}
"""Bits of an fp32 mantissa that the narrow dtype lacks."""

_SMALLEST_NORMAL = 2.0**-14  # of fp16; below it every step is 2^-24
_SUBNORMAL_STEP = 2.0**-24


class Rounding:
    """Rounds one tensor, block after block.

    "nearest" rounds to nearest, ties to even. "stochastic" rounds up or down with probabilities that make the expected
    value exact (Croci et al., Stochastic rounding, 2022), so that deltas below half a step survive on average. Its
    random bits come from `seed` and the tensor's name: the same call gives the same bytes on any machine.
    """

    def __init__(self, kind: RoundingKind, seed: int, name: str) -> None:
        self.kind = kind
        self._random = torch.Generator()
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        self._random.manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    @property
    def is_in_order(self) -> bool:
        """Whether blocks must come in order, from one thread, because random bits are drawn for each."""
        return self.kind == "stochastic"

    def __call__(self, wide: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return a block in `dtype`; the same object where it is in that dtype already."""
        dropped = _DROPPED_BITS.get(dtype)
        if self.kind == "nearest" or dropped is None or wide.dtype == dtype:
            return wide.to(dtype)
        single = wide.to(torch.float32).contiguous()
        noise = torch.randint(0, 1 << dropped, single.shape, generator=self._random, dtype=torch.int32)
        noise = noise.to(single.device)
        # Noise is added to the bits below the step, then those are cut off: it carries as often as it should.
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
