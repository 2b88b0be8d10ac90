"""E-DERIVED: tensors of the shapes that the model wants, which are parts of weights or numbers about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding
from shardload.keys import STATISTICS, collapse, no_weight

if TYPE_CHECKING:
    from collections.abc import Sequence


_TOOLS = "torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm, prune.remove"
_MADE_BY = "weight norm, spectral norm, pruning, a parametrization"
_PARTS = (
    f"parts of which weights are computed ({_MADE_BY}), and the model has the weights themselves",
    (
        f"load into a model that has the same parametrization, compute the weights there ({_TOOLS}), and save that; "
        "no cure is known for the parts alone"
    ),
)
_WHOLE = (
    f"weights, of which the model has parts ({_MADE_BY})",
    "load into the model without its parametrization, and apply that afterwards; no cure is known for the parts",
)
_NUMBERS = (
    "numbers about weights (gradients, an optimizer's state, differences), not the weights",
    "pass the checkpoint that holds the weights; no cure is known for this one",
)


class DerivedRule:
    """Applies where tensors of one shape are left on both sides, and only those of one side are weights."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return findings: parts of weights, weights of which the model has parts, numbers about weights."""
        board = case.solution.board
        wanted = {family.signature: no_weight(family.template) for family in board.wanted}
        found: dict[tuple[str, str], list[str]] = {}
        for family in board.stored:
            made, other = no_weight(family.template), wanted.get(family.signature)
            if other is not None and bool(made) != bool(other):
                words = _WHOLE if other else _NUMBERS if made in STATISTICS else _PARTS
                found.setdefault(words, []).extend(case.solution.stored_names(family.names))
        return [
            Finding(
                "E-DERIVED",
                cause,
                explained=len(keys),
                nbytes=case.nbytes(keys),
                cure=cure,
                evidence=tuple(collapse(keys)[:3]),
                confidence=0.9,
            )
            for (cause, cure), keys in found.items()
        ]
