"""E-LAYERS: a tensor of experts that some of the stored experts are missing for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding
from shardload.diagnosis.pairing.words import words_of
from shardload.diagnosis.shape_pairs import whole_templates
from shardload.keymap import leaves
from shardload.keys import collapse, ranges, split_key

if TYPE_CHECKING:
    from collections.abc import Sequence


class IncompleteRule:
    """Applies where a stack of numbered tensors has fewer than the model, and another stack, or a router, has all."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding with the exact numbers that are stored, and those that are not."""
        whole = whole_templates(case.solution)
        routed = {
            shape[0] for template, shapes in whole.items() if is_router(template) for shape in shapes if shape
        }
        found = []
        for key, model, stored, template in case.shape_pairs:
            if not (model and stored) or model[1:] != stored[1:] or not stored[0] < model[0]:
                continue
            if template not in whole and model[0] not in routed:
                continue
            have = _counted(case, key)
            if have:
                found.append((key, have, set(range(model[0])) - have))
        if not found:
            return ()
        keys = [key for key, _, _ in found]
        _, have, lacking = found[0]
        one = len({frozenset(missing) for _, _, missing in found}) == 1
        which = f"number{'s' * (len(lacking) != 1)} {ranges(lacking)}" if one else "some of their parts"
        return (
            Finding(
                "E-LAYERS",
                f"{', '.join(collapse(keys)[:3])}: {which} of {len(have) + len(lacking)} are not stored: "
                "the checkpoint is incomplete",
                explained=len(keys),
                cure="fetch the shards that hold them; no file in the folder names them",
                evidence=tuple(f"{key}: {ranges(stored)} are stored" for key, stored, _ in found[:4]),
            ),
        )


def is_router(key: str) -> bool:
    """Whether a key is that of the matrix with a row for each expert."""
    segments = key.split(".")
    words = {word for segment in segments[-3:] for word in words_of(segment)}
    return "router" in words or segments[-2:] == ["gate", "weight"]


def _counted(case: Case, key: str) -> set[int]:
    """Return the numbers of the stored tensors that one is stacked of: those that differ among their names."""
    tensor = case.stored.get(key)
    names = [split_key(ref.name) for ref in leaves(tensor)] if tensor is not None else []
    if len(names) < 2 or len({len(indices) for _, indices in names}) != 1:
        return set()
    columns = [set(column) for column in zip(*(indices for _, indices in names), strict=True)]
    varying = [column for column in columns if len(column) > 1]
    return varying[0] if len(varying) == 1 else set()
