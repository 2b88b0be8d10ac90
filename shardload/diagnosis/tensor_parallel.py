"""E-RANK: one rank's part of a tensor-parallel checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding
from shardload.diagnosis.pairing.words import words_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.diagnosis.finding import Shape

_DEGREES = (2, 4, 8, 16, 32, 64)


class TensorParallelRule:
    """Applies when every tensor of another shape is an equal part of the model's, and norms are whole."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding that declines the file: the other ranks' files are needed."""
        pairs = case.shape_pairs
        degrees = {_degree(*shapes) for shapes in {(pair.model, pair.stored) for pair in pairs}}
        if len(degrees) != 1 or 0 in degrees:
            return ()
        degree = next(iter(degrees))
        matrices = sum(len(ref.shape) == 2 for ref in case.stored.values())
        if 3 * len(pairs) < 2 * matrices and not (
            degree > 2 and all(_is_embedding(pair.template) for pair in pairs)
        ):
            return ()  # nearly every matrix of a rank is a part
        norms = [
            key
            for key, ref in case.stored.items()
            if len(ref.shape) == 1 and {"norm"} & {word for part in key.split(".") for word in words_of(part)}
        ]
        whole = [
            key
            for key in norms
            if case.slots.get(case.solution.names.get(key, key)) == case.stored[key].shape
        ]
        if norms and len(whole) < len(norms):
            return ()
        key, model, stored, _ = pairs[0]
        return (
            Finding(
                "E-RANK",
                f"this is one rank of {degree} of a tensor-parallel checkpoint: "
                f"{len(pairs)} matrices are cut, norms whole",
                explained=len(pairs),
                nbytes=case.nbytes(case.shape_mismatches),
                cure=f"{degree} files are needed: join the ranks with the tool that wrote them, and load the result",
                evidence=(f"{key} {list(stored)} is 1/{degree} of {list(model)}",),
                confidence=0.95 if len(pairs) > 1 or norms else 0.7,
                declines=True,
            ),
        )


def _is_embedding(key: str) -> bool:
    return "embed" in {word for part in key.split(".") for word in words_of(part)}


def _degree(model: Shape, stored: Shape) -> int:
    """Return how many such parts make the model's tensor; 0 where the stored one is no equal part of it."""
    if len(model) != len(stored):
        return 0
    cut = [(one, two) for one, two in zip(model, stored, strict=True) if one != two]
    if len(cut) != 1 or not cut[0][1] or cut[0][0] % cut[0][1]:
        return 0
    degree = cut[0][0] // cut[0][1]
    return degree if degree in _DEGREES else 0
