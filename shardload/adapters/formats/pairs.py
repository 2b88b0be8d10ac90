"""Files with one A and one B for each layer: the keys sorted by layer, and pairs that lack a half."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardload.adapters.adapter import SHARDED, canonical
from shardload.adapters.adapter_report import AdapterFault, shown

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator, Mapping

    from shardload.adapters.adapter import AdapterFile
    from shardload.tensor_ref import TensorRef


@dataclass
class Pairs:
    """The stored tensors of a file by layer: `layers` maps a module path to its parts, "a", "b", "magnitude", "bias".

    `others` are tensors that belong to no layer, by module path and attribute.
    """

    spelling: Mapping[str, str]
    layers: dict[str, dict[str, TensorRef]] = field(default_factory=dict)
    others: dict[tuple[str, str], TensorRef] = field(default_factory=dict)
    faults: list[AdapterFault] = field(default_factory=list)

    def whole(self) -> Iterator[tuple[str, dict[str, TensorRef]]]:
        """Yield each layer that has both A and B; a layer that lacks one becomes a fault."""
        for path, parts in self.layers.items():
            absent = [part for part in ("a", "b") if part not in parts]
            if not absent:
                yield path, parts
                continue
            there = next(iter(parts.values()))
            for part in absent:
                key = f"{path}.{self.spelling[part]}" if path else self.spelling[part]
                text = f"the tensor is missing, while {shown(there.name)} is there"
                self.faults.append(AdapterFault("missing", key, text, nearest=path))


def sort_pairs(file: AdapterFile, pattern: re.Pattern[str], spelling: Mapping[str, str]) -> Pairs:
    """Sort a file's tensors by layer; empty and duplicate tensors, and entries that are no tensors, become faults.

    `pattern` matches the keys of layers, with groups `path` and `part`; `spelling` maps each part to its name in the
    file.
    """
    part_of = {spelled: part for part, spelled in spelling.items()}
    pairs = Pairs(spelling)
    for key, ref in file.tensors.items():
        found = pattern.fullmatch(key)
        owner, _, attribute = (found["path"] or "", "", "") if found else key.rpartition(".")
        path = canonical(owner)
        if not ref.numel:
            pairs.faults.append(AdapterFault("empty", key, SHARDED, path, ref.shape))
            continue
        known = (
            pairs.layers.setdefault(path, {}).setdefault(part_of[found["part"]], ref)
            if found
            else pairs.others.setdefault((path, attribute), ref)
        )
        if known is not ref:
            text = f"the same tensor is stored as {shown(known.name)} too"
            pairs.faults.append(AdapterFault("duplicate", key, text, nearest=path))
    for key in file.checkpoint.objects:
        pairs.faults.append(AdapterFault("unexpected", str(key), "the entry is no tensor"))
    return pairs
