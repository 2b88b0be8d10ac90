"""E-ZERO3: a state dict that was saved while DeepSpeed ZeRO-3 kept the weights on other ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding
from shardload.keys import collapse

if TYPE_CHECKING:
    from collections.abc import Sequence

_EMPTY = frozenset({(0,), (1,)})


class PlaceholderRule:
    """Applies when most tensors of the model are stored with shape [0] or [1]."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding that declines the file."""
        empty = [
            key
            for key, ref in case.stored.items()
            if ref.shape in _EMPTY and case.slots.get(key, (2,)) not in {*_EMPTY, ()}
        ]
        if len(empty) < 2 or 2 * len(empty) < len(case.stored):
            return ()
        return (
            Finding(
                "E-ZERO3",
                f"{len(empty)} of {len(case.stored)} tensors are empty: DeepSpeed ZeRO-3 placeholders, not weights",
                explained=len(empty),
                cure="gather them with DeepSpeed's zero_to_fp32.py from the folder of the same checkpoint",
                evidence=tuple(collapse(empty)[:3]),
                declines=True,
            ),
        )
