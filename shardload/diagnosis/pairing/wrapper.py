"""Keys that carry, or lack, whole segments: DDP's `module.`, torch.compile's `_orig_mod.`, FSDP's, a base model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardload.keymap import KeyMap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from shardload.diagnosis.pairing.key_family import Shape

_LONGEST = 4  # segments; real wrappers nest three deep
_MOST_TRIED = 12
WRAPPERS = {
    "module": "DistributedDataParallel or DataParallel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning's strategy",
    "_dpp_module": "pipeline parallelism",
    "base_layer": "PEFT's layer around a base layer",
}
"""Segments that wrapping leaves in keys, and what leaves them."""


@dataclass(frozen=True)
class Wrapping:
    """Whole segments to take out of the stored keys, or to put in front of them, and how many keys that fits."""

    key_map: KeyMap
    names: dict[str, str]
    segments: str
    adds: bool
    gained: int
    by: str = ""


def unwrap(stored: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> list[Wrapping]:
    """Return what has to be done to the keys' segments, one change after the other, each tried on all keys.

    A change is accepted only if more keys fit the model afterwards, or if it takes out what a wrapper leaves and
    the model has nowhere: a real child of that name is never lost.
    """
    found: list[Wrapping] = []
    names = {key: key for key in stored}
    for _ in range(_LONGEST):
        shapes = {names[key]: shape for key, shape in stored.items()}
        change = _best_change(shapes, wanted)
        if change is None:
            break
        names = {key: change.names[name] for key, name in names.items()}
        found.append(change)
    return found


def _best_change(stored: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> Wrapping | None:
    before = _fitting(stored.items(), wanted)
    if before == len(stored):
        return None
    best: Wrapping | None = None
    for key_map, rename, segments, adds, by in _candidates(stored, wanted):
        names = {key: rename(key) for key in stored}
        if len(set(names.values())) != len(names):
            continue
        gained = _fitting(((names[key], shape) for key, shape in stored.items()), wanted) - before
        foreign = not adds and bool(by)
        enough = gained >= 0 if foreign else 2 * gained >= len(stored) - before
        if enough and (best is None or gained > best.gained):
            best = Wrapping(key_map, names, segments, adds, gained, by)
    return best


_Candidate = tuple[KeyMap, "Callable[[str], str]", str, bool, str]


def _candidates(stored: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> Iterator[_Candidate]:
    open_keys = [key for key, shape in stored.items() if wanted.get(key) != shape]
    missing = [key for key in wanted if key not in stored]
    children = {segment for key in wanted for segment in key.split(".")}
    seen = {segment for key in open_keys for segment in key.split(".")}
    for prefix in _prefixes(open_keys):
        key_map = KeyMap().rename(f"{prefix}.{{...}}", "{...}")
        by = " inside ".join(WRAPPERS[part] for part in reversed(prefix.split(".")) if part in WRAPPERS)
        foreign = by if not set(prefix.split(".")) & children else ""
        yield key_map, _stripper(prefix), prefix, False, foreign
    for segment, by in WRAPPERS.items():
        if segment in seen and segment not in children:
            yield _without(segment), _remover(segment), segment, False, by
    for prefix in _prefixes(missing):
        yield KeyMap().rename("{...}", f"{prefix}.{{...}}"), _adder(prefix), prefix, True, ""


def _without(segment: str) -> KeyMap:
    return KeyMap().rename(segment, "", everywhere=True)


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


def _prefixes(keys: Sequence[str]) -> list[str]:
    """Return the leading runs of segments that at least half of the keys share, the shortest first.

    Braces in a key would be placeholders in a template, so such runs are left out.
    """
    counts: Counter[str] = Counter()
    for key in keys:
        segments = key.split(".", _LONGEST)
        for length in range(1, min(_LONGEST, len(segments) - 1) + 1):
            counts[".".join(segments[:length])] += 1
    return [
        prefix
        for prefix, count in counts.most_common(_MOST_TRIED)
        if 2 * count >= len(keys) and not {"{", "}"} & set(prefix)
    ]


def _fitting(stored: object, wanted: Mapping[str, Shape]) -> int:
    return sum(wanted.get(key) == shape for key, shape in stored)  # type: ignore[attr-defined]
