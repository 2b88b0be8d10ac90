"""E-VOCAB: embeddings and heads that differ in their number of rows only."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from shardload.diagnosis.config_fields import Field, explaining, fields_of, is_table, of_part
from shardload.diagnosis.finding import Case, Finding, change_of_config
from shardload.diagnosis.pairing.words import words_of
from shardload.errors import Cures
from shardload.keys import collapse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.diagnosis.shape_pairs import ShapePair

_MOST = 4  # tensors with one row per token: embedding and head, of an encoder and of a decoder


class Vocabulary(NamedTuple):
    """The rows of the model's tables, those of the stored ones, and the config's fields that say them, if any do."""

    wanted: int
    have: int
    fields: tuple[str, ...]


class VocabularyRule:
    """Applies when few tensors differ, all in the same two numbers of rows, with equal columns."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding that says which vocabulary size the checkpoint has."""
        pairs = case.shape_pairs
        found = vocabulary_of(case, pairs)
        if found is None:
            return ()
        keys = [pair.key for pair in pairs]
        change = {
            "the vocabulary size": [Field(name, found.wanted, found.have) for name in found.fields or ("",)]
        }
        cures = [change_of_config(change, " (nothing is lost)")]
        if found.have > found.wanted:
            cures.append(
                f"drop the rows beyond {found.wanted} with slice_rows of a key map, which loses them"
            )
        return (
            Finding(
                "E-VOCAB",
                f"only {', '.join(collapse(keys))} differ{'s' if len(pairs) == 1 else ''}, in rows: "
                f"the checkpoint's vocabulary has {found.have} entries, the model's {found.wanted}",
                len(pairs),
                Cures(*cures),
                nbytes=case.nbytes(case.shape_mismatches),
                confidence=0.97,
                settles=frozenset(keys),
            ),
        )


def vocabulary_of(case: Case, pairs: Sequence[ShapePair]) -> Vocabulary | None:
    """Return the two vocabulary sizes where nothing else differs; None where another field fits better."""
    if not pairs or len(pairs) > _MOST or any(not one or one[1:] != two[1:] for _, one, two, _ in pairs):
        return None
    rows = {(pair.model[0], pair.stored[0]) for pair in pairs}
    if len(rows) != 1:
        return None
    wanted, have = next(iter(rows))
    keys = [pair.key for pair in pairs]
    named = [
        name
        for name, value in fields_of(case.config)
        if value == wanted and "vocab" in name and "type" not in name
    ]
    fitting = {field.name for key in keys for field in explaining(case.config, key, wanted, have)}
    if fitting and not fitting & set(named):
        return None
    if not fitting and not all(_has_tokens(case, key, wanted) for key in keys):
        return None
    placed = {tuple(of_part(named, key)) for key in keys}
    if len(placed) > 1:
        return None  # a field for each of several parts
    return Vocabulary(wanted, have, placed.pop())


def _has_tokens(case: Case, key: str, rows: int) -> bool:
    """Whether a table has a row for each token: a head has where an embedding of the model has as many rows."""
    if not is_table(key):
        return False
    words = {word for segment in key.split(".")[-2:] for word in words_of(segment)}
    if "head" not in words or "text" in words:
        return True
    return any(
        shape[:1] == (rows,) and is_table(other) and {"embed", "token"} & set(words_of(other.split(".")[-2]))
        for other, shape in case.slots.items()
        if "." in other
    )
