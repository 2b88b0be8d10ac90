"""E-VOCAB: embeddings and heads that differ in their number of rows only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding, change_of_config
from shardload.diagnosis.pairing.words import words_of
from shardload.diagnosis.sizes import fields_of, mismatched_shapes
from shardload.errors import Cures
from shardload.keys import collapse

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEADS = frozenset({"output", "output_layer", "shared", "decoder", "logits", "vocab_projector", "proj_out"})
_MOST = 4  # tensors with one row per token: embedding and head, of an encoder and of a decoder


class VocabularyRule:
    """Applies when few tensors differ, all in the same two numbers of rows, with equal columns."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding that says which vocabulary size the checkpoint has."""
        pairs = mismatched_shapes(case)
        if not pairs or len(pairs) > _MOST:
            return ()
        rows = {
            (model[0], stored[0])
            for _, model, stored in pairs
            if model and stored and model[1:] == stored[1:]
        }
        if len(rows) != 1 or any(model[1:] != stored[1:] for _, model, stored in pairs):
            return ()
        wanted, have = next(iter(rows))
        keys = [key for key, _, _ in pairs]
        fields = [name for name, value in fields_of(case.config) if value == wanted and "vocab" in name]
        if not fields and not all(_is_table(key) for key in keys):
            return ()
        field = fields[0] if fields else "the vocabulary size"
        cures = [change_of_config(f"{field} to {have}", " (nothing is lost)")]
        if have > wanted:
            cures.append(f"drop the rows beyond {wanted} with slice_rows of a key map, which loses them")
        return (
            Finding(
                "E-VOCAB",
                f"only {', '.join(collapse(keys))} differ{'s' if len(pairs) == 1 else ''}, in rows: "
                f"the checkpoint's vocabulary has {have} entries, the model's {wanted}",
                len(pairs),
                Cures(*cures),
                nbytes=case.nbytes(case.shape_mismatches),
                confidence=0.97,
            ),
        )


def _is_table(key: str) -> bool:
    """Whether the name is that of an embedding of tokens or of an output layer; lists of experts have rows too."""
    last = key.split(".")[-2:]
    words = {word for segment in last for word in words_of(segment)}
    return bool(words & {"embed", "token", "head"} or _HEADS & set(last)) and not words & {
        "experts",
        "position",
    }
