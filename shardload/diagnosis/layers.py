"""E-LAYERS: layers that one side has and the other lacks, with the exact holes."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from shardload.diagnosis.config_fields import Field, fields_saying
from shardload.diagnosis.finding import Case, Finding, change_of_config
from shardload.keys import ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


_FIRST = re.compile(r"(?:^|\.)(0|[1-9][0-9]{0,8})(?=\.|$)")  # a key's first number, as `split_key` takes one


class LayersRule:
    """Compares the layer numbers of both sides, list by list."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return a finding for layers without weights, and one for weights without layers."""
        left = case.solution.left
        if not (left.missing or left.unexpected):
            return ()
        # The names that the map gives: a list of layers may have another path in the checkpoint.
        made, own = case.solution.table, [key for family in case.solution.wanted for key in family.names]
        stored, wanted = _numbers(case)
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
                found.append(_holes(_below(own, path, lacking), path, lacking, stored[path]))
            elif lacking or extra:
                below = _below(own if lacking else made, path, lacking or extra)
                found.append(_other_count(case, path, below, stored[path], wanted[path]))
        return found


def _numbers(case: Case) -> tuple[Mapping[str, set[int]], Mapping[str, set[int]]]:
    """Return {path of a list of layers: its numbers}, of the made keys and of the model's: the first of each key."""
    made, found, wanted = case.solution.table, defaultdict(set), defaultdict(set)
    for family in case.solution.wanted:
        path, is_list, _ = family.template.partition("{}")
        for key, indices in zip(family.names, family.members, strict=True) if is_list else ():
            wanted[path].add(indices[0])
            if key in made:
                found[path].add(indices[0])
    for key in made:
        if key not in case.slots and "{" not in key and (first := _FIRST.search(key)):
            found[key[: first.start(1)]].add(int(first[1]))
    return found, wanted


def _below(keys: Iterable[str], path: str, numbers: set[int]) -> list[str]:
    heads = tuple(f"{path}{number}." for number in numbers)
    whole = {head[:-1] for head in heads}
    return [key for key in keys if key.startswith(heads) or key in whole]


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
