"""Claims: gathers the stored tensors of each claim, and lets the target make the tensors of its slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.dequantise import BadValuesError
from shardload.dequantise.stored import damaged
from shardload.errors import UsageError
from shardload.keymap.derived import leaves

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from shardload.loading.plan import Plan
    from shardload.placement.target import Claim, Target


class Claims:
    """Gathers the tensors of claims in any order; a claim's tensors are held until the last one has arrived."""

    def __init__(self, plan: Plan, target: Target) -> None:
        self._target = target
        self._claimed, self._mapped = plan.claimed, plan.mapped
        self._gathered: dict[int, dict[str, torch.Tensor]] = {id(claim): {} for claim in plan.claims}

    def take(self, name: str, stored: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Keep a tensor. When it completes its claim, yield the names of the claim's slots with their tensors."""
        claim = self._claimed[name]
        gathered = self._gathered[id(claim)]
        gathered[name] = stored
        if len(gathered) < len(set(claim.stored.values())):
            return
        del self._gathered[id(claim)]
        try:
            made = self._target.make(claim, {role: gathered[name] for role, name in claim.stored.items()})
        except BadValuesError as error:
            ref = next(leaves(self._mapped[claim.stored[error.role]]))
            raise damaged(ref, f"{ref.name}, a part of a packed weight, {error.why}") from None
        yield from ((slot, made[slot]) for slot in _complete(claim, made))


def _complete(claim: Claim, made: object) -> tuple[str, ...]:
    if not isinstance(made, dict) or made.keys() != set(claim.fills):
        raise UsageError(
            f"the target made {sorted(made) if isinstance(made, dict) else made!r} for a claim on {claim.fills}",
            where=", ".join(claim.stored.values()),
        )
    return claim.fills
