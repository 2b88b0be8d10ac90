"""E-LAYERS: layers that one side has and the other lacks, with the exact holes."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from shardload.diagnosis.config_fields import Field, fields_saying
from shardload.diagnosis.finding import Case, Finding, change_of_config
from shardload.diagnosis.pairing.key_family import families_of
from shardload.keys import ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from shardload.diagnosis.pairing.key_family import KeyFamily


class LayersRule:
    """Compares the layer numbers of both sides, list by list."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return a finding for layers without weights, and one for weights without layers."""
        left = case.solution.left
        if not (left.missing or left.unexpected):
            return ()
        # The names that the map gives: a list of layers may have another path in the checkpoint.
        made = families_of({key: ref.shape for key, ref in case.solution.table.items()})
        lists = _by_path(made), _by_path(case.solution.wanted)
        stored, wanted = map(_numbers, lists)
        found = []
        shifted = {
            family.template.partition("{}")[0]
            for link in case.solution.board.links
            if link.offset
            for family in link.stored
        }  # E-OFFSET reports these: the layers are all there
        for path in (wanted.keys() & stored.keys()) - shifted:
            lacking, extra = wanted[path] - stored[path], stored[path] - wanted[path]
            if lacking and lacking <= set(range(max(stored[path]))):
                found.append(_holes(_below(lists[1][path], lacking), path, lacking, stored[path]))
            elif lacking or extra:
                below = _below(lists[bool(lacking)][path], lacking or extra)
                found.append(_other_count(case, path, below, stored[path], wanted[path]))
        return found


def _by_path(families: Iterable[KeyFamily]) -> Mapping[str, list[KeyFamily]]:
    """Return {path of a list of layers: its families}."""
    found: dict[str, list[KeyFamily]] = defaultdict(list)
    for family in families:
        if family.arity:
            found[family.template.partition("{}")[0]].append(family)
    return found


def _numbers(lists: Mapping[str, Sequence[KeyFamily]]) -> Mapping[str, set[int]]:
    """Return {path of a list of layers: its numbers}, from the first number of each key."""
    return {
        path: {indices[0] for family in families for indices in family.members}
        for path, families in lists.items()
    }


def _below(families: Iterable[KeyFamily], numbers: set[int]) -> list[str]:
    return [family.key(indices) for family in families for indices in family.members if indices[0] in numbers]


def _holes(keys: Sequence[str], path: str, lacking: set[int], stored: set[int]) -> Finding:
    return Finding(
        "E-LAYERS",
        f"the checkpoint has no layers {path}{ranges(lacking)}, and has {ranges(stored)}: it is incomplete",
        explained=len(keys),
        cure="fetch the shards that hold them; no file in the folder names them",
        evidence=(f"{len(keys)} keys of the model are missing in these layers",),
    )


def _other_count(case: Case, path: str, keys: Sequence[str], stored: set[int], wanted: set[int]) -> Finding:
    count, model, table = max(stored) + 1, max(wanted) + 1, case.solution.table
    lacking = wanted - stored
    hints = ("layer", "depth")
    fields = next((found for hint in hints if (found := fields_saying(case.config, model, hint, path))), [])
    says = f"; config.json says {', '.join(f'{field} = {model}' for field in fields)}" if fields else ""
    return Finding(
        "E-LAYERS",
        f"the checkpoint has {count} layers in {path}{ranges(stored)}, the model {model}{says}",
        explained=len(keys),
        nbytes=0 if lacking else sum(table[key].nbytes for key in keys),
        cure=change_of_config(
            {"the number of layers": [Field(field, model, count) for field in fields or [""]]}
        ),
        evidence=(f"{'missing' if lacking else 'unexpected'}: {path}{ranges(lacking or stored - wanted)}",),
        settles=frozenset(keys),
    )
