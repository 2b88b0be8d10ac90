"""KeyMap: ordered rules that turn a checkpoint's keys into a model's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from shardload.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

_PLACEHOLDER = re.compile(r"\{(\.\.\.)?\}")


@dataclass(frozen=True)
class Rename:
    """Rename keys that match a template. `{}` is one number, `{...}` any run of segments (at most one of them)."""

    source: str
    target: str

    def __post_init__(self) -> None:
        if _PLACEHOLDER.findall(self.source) != _PLACEHOLDER.findall(self.target):
            raise UsageError(
                "both sides of a rename need the same placeholders in the same order",
                where=f"{self.source!r} -> {self.target!r}",
                cure="use {} for a layer number and {...} for the rest of a key on both sides",
            )
        if self.source.count("{...}") > 1:
            raise UsageError("a template holds at most one {...}", where=repr(self.source))

    def apply(self, key: str) -> str | None:
        """Return the new key; the same key where the template does not match."""
        match = _pattern(self.source).fullmatch(key)
        return _substitute(self.target, match.groups()) if match else key

    def invert(self) -> Rename:
        """Return the rename that undoes this one."""
        return Rename(self.target, self.source)

    def to_dict(self) -> dict[str, str]:
        """Return the rule as JSON data."""
        return {"op": "rename", "source": self.source, "target": self.target}


@dataclass(frozen=True)
class Drop:
    """Leave out keys that match an fnmatch pattern."""

    pattern: str

    def apply(self, key: str) -> str | None:
        """Return None for a key that is dropped, else the key."""
        return None if fnmatchcase(key, self.pattern) else key

    def invert(self) -> Rename:
        """Raise UsageError: what was dropped can't be written back."""
        raise UsageError("a drop has no inverse", where=f"drop {self.pattern!r}")

    def to_dict(self) -> dict[str, str]:
        """Return the rule as JSON data."""
        return {"op": "drop", "pattern": self.pattern}


Rule = Rename | Drop


@dataclass(frozen=True)
class KeyMap:
    """Rules applied one after the other to every key of a checkpoint; immutable, each method returns a new map.

        KeyMap().rename("module.{...}", "{...}").rename("h.{}.attn.{...}", "layers.{}.attention.{...}")

    In a template `{}` stands for one number and `{...}` for any run of whole segments.
    """

    rules: tuple[Rule, ...] = ()

    @classmethod
    def of(cls, value: KeyMap | Mapping[str, str | None] | None) -> KeyMap:
        """Return `value` as a KeyMap: a mapping gives a rename an entry, or a drop where its value is None."""
        if isinstance(value, KeyMap):
            return value
        if value is not None and not isinstance(value, Mapping):
            raise UsageError(f"a KeyMap or a mapping of names is wanted, not {type(value).__name__}")
        for old, new in (value or {}).items():
            if not isinstance(old, str) or not isinstance(new, (str, type(None))):
                raise UsageError(
                    "a key map gives texts for texts, or None to drop", where=f"{old!r}: {new!r}"
                )
        rules = [Drop(old) if new is None else Rename(old, new) for old, new in (value or {}).items()]
        return cls(tuple(rules))

    def rename(self, source: str, target: str) -> KeyMap:
        """Add a rename from one template to another."""
        return KeyMap((*self.rules, Rename(source, target)))

    def drop(self, pattern: str) -> KeyMap:
        """Add a rule that leaves out the keys matching an fnmatch pattern."""
        return KeyMap((*self.rules, Drop(pattern)))

    def __add__(self, other: KeyMap) -> KeyMap:
        return KeyMap(self.rules + other.rules)

    def apply(self, key: str) -> str | None:
        """Return the model's name for a checkpoint's key, or None when it is dropped."""
        current: str | None = key
        for rule in self.rules:
            if current is None:
                return None
            current = rule.apply(current)
        return current

    def map_keys(self, keys: Iterable[str]) -> dict[str, str | None]:
        """Return {old: new or None} for all keys. Raises UsageError when two keys get the same name."""
        if not self.rules:
            return {key: key for key in keys}
        mapped = {key: self.apply(key) for key in keys}
        owner: dict[str, str] = {}
        clashes = []
        for old, new in mapped.items():
            if new is not None and owner.setdefault(new, old) != old:
                clashes.append(f"{owner[new]} and {old} both become {new}")
        if clashes:
            raise UsageError(
                f"the key map gives {len(clashes)} keys a name that is taken",
                where="; ".join(clashes[:5]),
                cure="make the templates more exact, or drop one of each pair",
            )
        return mapped

    def invert(self) -> KeyMap:
        """Return the map from the model's keys to the checkpoint's. Raises UsageError where a rule has no inverse."""
        return KeyMap(tuple(rule.invert() for rule in reversed(self.rules)))

    def to_json(self) -> str:
        """Return the map as a JSON document."""
        document = {"version": 1, "rules": [rule.to_dict() for rule in self.rules]}
        return json.dumps(document, indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> KeyMap:
        """Read what `to_json` wrote. Raises UsageError for anything else."""
        try:
            document = json.loads(text)
            if document["version"] != 1:
                raise UsageError(
                    f"key map version {document['version']!r} is not known; this reads version 1"
                )
            return cls(tuple(_rule(entry) for entry in document["rules"]))
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"this is no key map: {error}", cure="write one with KeyMap.to_json") from error


def _rule(entry: dict[str, Any]) -> Rule:
    if entry["op"] == "rename":
        return Rename(str(entry["source"]), str(entry["target"]))
    if entry["op"] == "drop":
        return Drop(str(entry["pattern"]))
    raise UsageError(f"key map rule {entry['op']!r} is not known", cure="rename and drop are")


_compiled: dict[str, re.Pattern[str]] = {}


def _pattern(template: str) -> re.Pattern[str]:
    if template not in _compiled:
        text = re.escape(template).replace(r"\{\}", "([0-9]+)").replace(r"\{\.\.\.\}", "(.+)")
        _compiled[template] = re.compile(text)
    return _compiled[template]


def _substitute(template: str, values: tuple[str, ...]) -> str:
    parts = _PLACEHOLDER.split(template)
    # split() with one group gives: text, group, text, group, … text
    text = parts[0]
    for value, part in zip(values, parts[2::2], strict=True):
        text += value + part
    return text
