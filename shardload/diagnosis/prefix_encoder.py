"""A prefix of P-Tuning v2: stored with its model, or alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.config_fields import Field
from shardload.diagnosis.finding import Case, Finding, change_of_config
from shardload.errors import Wording

if TYPE_CHECKING:
    from collections.abc import Sequence

_MODULE = "prefix_encoder"
_TABLE = f"{_MODULE}.embedding.weight"


class PrefixRule:
    """Applies to a prefix without its model, and to a model with a prefix for which config.json makes no module."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding; none where the model has a prefix encoder and other tensors are stored too."""
        keys = [key for key in case.stored if _MODULE in key.split(".")]
        table = next((key for key in keys if f".{key}".endswith(f".{_TABLE}")), None)
        if table is None or len(case.stored[table].shape) != 2:
            return ()
        rows = case.stored[table].shape[0]
        if len(keys) == len(case.stored):
            return (
                [_alone(case, keys, rows)] if any(_MODULE not in key.split(".") for key in case.slots) else ()
            )
        if any(_MODULE in key.split(".") for key in case.slots) or not case.slots:
            return ()
        if case.config.get("pre_seq_len"):
            return ()  # it says so already, and the class has no such module
        return [_beside(case, keys, rows)]


def _alone(case: Case, keys: Sequence[str], rows: int) -> Finding:
    return Finding(
        "E-ADAPTER",
        f"this is a prefix of P-Tuning v2, of {rows} tokens, not a model's weights",
        explained=len(keys),
        nbytes=case.nbytes(keys),
        cure=Wording(
            "load the base model, with this prefix on it: {prefix}",
            prefix=case.where.name if case.where else ...,
        ),
        evidence=tuple(keys[:2]),
        declines=True,
    )


def _beside(case: Case, keys: Sequence[str], rows: int) -> Finding:
    projected = any(f"{_MODULE}.trans." in key for key in keys)
    changes = {"pre_seq_len": [Field("pre_seq_len", 0, rows)]}
    if projected:
        changes["prefix_projection"] = [Field("prefix_projection", 0, True)]
    new = [case.solution.names.get(key, key) for key in keys]
    return Finding(
        "E-CONFIG",
        f"a prefix of P-Tuning v2 is stored with the model, which has no {_MODULE}: config.json says no pre_seq_len",
        explained=len(keys),
        nbytes=case.nbytes(keys),
        cure=change_of_config(changes),
        evidence=tuple(f"{key} has {rows} rows" for key in keys if key.endswith(_TABLE)),
        confidence=0.95,
        settles=frozenset(new),
    )
