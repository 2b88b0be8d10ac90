"""Embeddings and heads that differ in their number of rows only: a resized vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding

if TYPE_CHECKING:
    from collections.abc import Sequence


class VocabularyRule:
    """Applies when every misshapen tensor has the same two row counts and equal columns, and few are."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding that says which vocabulary size the checkpoint has."""
        pairs = [(case.slots[key], case.stored[key].shape) for key in case.misshapen if key in case.stored]
        if not pairs or len(pairs) > 4 or len(pairs) != len(case.misshapen):
            return ()
        rows = {
            (model[0], stored[0]) for model, stored in pairs if model and stored and model[1:] == stored[1:]
        }
        if len(rows) != 1 or any(model[1:] != stored[1:] for model, stored in pairs):
            return ()
        wanted, have = next(iter(rows))
        fields = [key for key, value in case.config.items() if value == wanted and "vocab" in key]
        field = fields[0] if fields else "the vocabulary size"
        return (
            Finding(
                "E-VOCAB",
                f"only {', '.join(case.misshapen)} differ{'s' if len(pairs) == 1 else ''}, in rows: "
                f"the checkpoint's vocabulary has {have} entries, the model's {wanted}",
                len(pairs),
                f"set {field} to {have} in config.json, or in the config that you pass",
            ),
        )
