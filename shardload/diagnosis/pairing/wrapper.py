"""Whole segments too many or too few: DDP's `module.`, torch.compile's `_orig_mod.`, FSDP's, a base model's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardload.diagnosis.pairing.key_family import KeyFamily
from shardload.keymap import KeyMap
from shardload.keys import no_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_LONGEST = 4  # segments; real wrappers nest three deep
_MOST_TRIED = 16
_LEAST = 4  # a prefix is tried if one in so many keys has it
WRAPPERS = {
    "module": "DistributedDataParallel or DataParallel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning's strategy",
    "_dpp_module": "pipeline parallelism",
    "base_layer": "PEFT's layer around a base layer",
}
"""Segments that wrappers add to keys, and the wrapper of each."""


@dataclass(frozen=True)
class Wrapping:
    """Whole segments to remove from the stored keys or to add in front, and how many more keys fit then.

    `rename` does to one name or template what `key_map` does to all.
    """

    key_map: KeyMap
    rename: Callable[[str], str]
    segments: str
    adds: bool
    by: str = ""
    gained: int = 0


@dataclass(frozen=True)
class Unwrapped:
    """The changes that were accepted, one after the other, and the families after them.

    `rivals` are further changes that would make as many keys fit as each other, with other tensors: none is accepted.
    """

    wrappings: list[Wrapping]
    families: list[KeyFamily]
    rivals: list[Wrapping]


def unwrap(stored: Sequence[KeyFamily], wanted: Sequence[KeyFamily]) -> Unwrapped:
    """Remove or add whole segments where that makes keys fit.

    A change is accepted only if half of the keys that did not fit the model then fit, or if it removes a wrapper's
    segment that the model has nowhere: a real child of that name is never lost. Of two whole sets of weights none is
    taken.
    """
    found: list[Wrapping] = []
    families = list(stored)
    there = {family.template: family for family in wanted}
    for _ in range(_LONGEST):
        best = _best_changes(families, there)
        if len(best) != 1:
            return Unwrapped(found, families, best)
        families = _renamed(families, best[0])
        found += best
    return Unwrapped(found, families, [])


def _renamed(families: Sequence[KeyFamily], change: Wrapping) -> list[KeyFamily]:
    return [KeyFamily(change.rename(family.template), family.members) for family in families]


def _best_changes(stored: Sequence[KeyFamily], wanted: Mapping[str, KeyFamily]) -> list[Wrapping]:
    """Return the change after which most keys fit, and those after which as many fit, by other pairs."""
    before = _fitting(stored, wanted)
    open_keys = sum(len(family.members) for family in stored) - before
    best: Wrapping | None = None
    fitting: dict[frozenset[tuple[str, str]], Wrapping] = {}
    for change in _candidates(stored, wanted) if open_keys else ():
        after = _renamed(stored, change)
        if len({family.template for family in after}) != len(after):
            continue
        gained = _fitting(after, wanted) - before
        enough = gained >= 0 if change.by and not change.adds else 2 * gained >= open_keys
        if enough and (best is None or gained > best.gained):
            best = replace(change, gained=gained)
        if gained > 0:
            pairs = zip(stored, after, strict=True)
            fits = frozenset((old.template, new.template) for old, new in pairs if _fits(new, wanted))
            fitting.setdefault(fits, replace(change, gained=gained))
    most = best.gained if best else sum(len(family.members) for family in wanted.values()) - before
    equal = [change for change in fitting.values() if change.gained == most]
    return equal if len(equal) > 1 else [best] if best else []


def _candidates(stored: Sequence[KeyFamily], wanted: Mapping[str, KeyFamily]) -> Iterator[Wrapping]:
    strange = [family for family in stored if not _fits(family, wanted)]
    own = {family.template for family in stored}
    missing = [family for family in wanted.values() if family.template not in own]
    children = {segment for template in wanted for segment in template.split(".")}
    for prefix in prefixes(strange):
        parts = prefix.split(".")
        by = " inside ".join(WRAPPERS[part] for part in reversed(parts) if part in WRAPPERS)
        key_map = KeyMap().rename(f"{prefix}.{{...}}", "{...}")
        yield Wrapping(key_map, _stripper(prefix), prefix, adds=False, by="" if set(parts) & children else by)
    seen = {segment for family in strange for segment in family.segments}
    for segment, by in WRAPPERS.items():
        if segment in seen and segment not in children:
            key_map = KeyMap().rename(segment, "", everywhere=True)
            yield Wrapping(key_map, _remover(segment), segment, adds=False, by=by)
    for prefix in prefixes(missing):
        key_map = KeyMap().rename("{...}", f"{prefix}.{{...}}")
        yield Wrapping(key_map, _adder(prefix), prefix, adds=True)


def _remover(segment: str) -> Callable[[str], str]:
    def remove(key: str) -> str:
        if segment not in key:
            return key
        return ".".join(part for part in key.split(".") if part != segment) or key

    return remove


def _stripper(prefix: str) -> Callable[[str], str]:
    return lambda key: key.removeprefix(prefix + ".") or key


def _adder(prefix: str) -> Callable[[str], str]:
    return lambda key: f"{prefix}.{key}"


def prefixes(families: Sequence[KeyFamily]) -> list[str]:
    """Return the leading segments that many of the keys share, the most frequent first.

    Runs with a placeholder, or with braces of a key's own, are left out, and so are those of gradients and the like.
    """
    counts: Counter[str] = Counter()
    total = 0
    for family in families:
        size = len(family.members)
        total += size
        segments = family.template.split(".", _LONGEST)
        for length in range(1, min(_LONGEST, len(segments) - 1) + 1):
            counts[".".join(segments[:length])] += size
    return [
        prefix
        for prefix, count in counts.most_common(_MOST_TRIED)
        if _LEAST * count >= total and not {"{", "}"} & set(prefix) and not no_weight(prefix)
    ]


def _fitting(stored: Iterable[KeyFamily], wanted: Mapping[str, KeyFamily]) -> int:
    """Return how many stored keys the model has with the same shape."""
    count = 0
    for family in stored:
        other = wanted.get(family.template)
        if other is None:
            continue
        if other.members == family.members:
            count += len(family.members)
        else:
            count += sum(other.members.get(indices) == shape for indices, shape in family.members.items())
    return count


def _fits(family: KeyFamily, wanted: Mapping[str, KeyFamily]) -> bool:
    other = wanted.get(family.template)
    return other is not None and other.members == family.members
