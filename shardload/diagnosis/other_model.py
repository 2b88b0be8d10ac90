"""E-OTHER and E-ADAPTER: the file is of another architecture, or an adapter."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shardload.diagnosis.adapter_keys import LORA, adapter_cure
from shardload.diagnosis.finding import Case, Finding
from shardload.keys import collapse, no_weight, split_key

if TYPE_CHECKING:
    from collections.abc import Sequence


class OtherModelRule:
    """Recognises an adapter by its keys, and another architecture by how few keys have a place in the model."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding; none where over a fifth of the keys have a place."""
        adapter = [
            key
            for family in case.solution.stored
            if not LORA.isdisjoint(family.segments)
            for key in family.names
        ]
        if (
            adapter
            and 2 * len(adapter) >= len(case.stored)
            and not any(".lora_" in key for key in case.slots)
        ):
            return (
                Finding(
                    "E-ADAPTER",
                    f"this is a LoRA adapter ({len(adapter)} of {len(case.stored)} tensors), not a model's weights",
                    explained=len(adapter),
                    nbytes=case.nbytes(adapter),
                    cure=adapter_cure(_place(case), case.adapter_base),
                    evidence=tuple(collapse(adapter)[:2]),
                    declines=True,
                ),
            )
        if case.solution.rivals:
            return ()  # the tensors have a place, and several that would take it
        # A family may be in parts by now: layers.0.w and layers.1.w for layers.{}.w.
        known = {family.template for family in case.solution.wanted}
        strange = [
            key
            for family in case.solution.board.stored
            if split_key(family.names[0])[0] not in known and not no_weight(family.template)
            for key in family.names
        ]
        left = len(strange)
        if len(case.stored) < 5 or 5 * left < 4 * len(case.stored):
            return ()
        names = collapse(strange)
        return (
            Finding(
                "E-OTHER",
                f"{left} of {len(case.stored)} keys have no place in the model: it seems to be another architecture",
                explained=left,
                cure="use the class and config that belong to this checkpoint",
                evidence=(f"in the checkpoint: {', '.join(names[:3])} …",),
                confidence=0.6,
            ),
        )


def _place(case: Case) -> str | None:
    """Return the adapter's path or repo; None where another keyword belongs to it."""
    if case.where is None or case.where.subfolder or case.where.variant or case.where.state_dict:
        return None
    return os.fspath(case.where.name)
