"""KeyMap: ordered rules that turn a checkpoint's tensors into a model's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from shardload._system.gc_pause import gc_paused
from shardload.errors import UsageError
from shardload.keymap import document
from shardload.keymap.alias import Alias
from shardload.keymap.derived import leaves, stored_as
from shardload.keymap.drop import Drop
from shardload.keymap.fingerprint import Fingerprint
from shardload.keymap.key_pattern import unaccounted
from shardload.keymap.mapped import MappedHeaders, is_name_rule, refuse_meeting, renamed
from shardload.keymap.rename import Rename
from shardload.keymap.residence import residence
from shardload.keymap.rows import PadRows, SliceRows
from shardload.keymap.rule import refuse_clashes
from shardload.keymap.split import Cat, Split
from shardload.keymap.stack import Stack, Unstack
from shardload.keymap.transpose import Transpose
from shardload.keys import collapse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardload.keymap.derived import Derived
    from shardload.keymap.rule import Rule

Names = Mapping[str, str | None]


@dataclass(frozen=True)
class KeyMap:
    """Rules applied one after the other to the tensors of a checkpoint; immutable, each method returns a new map.

        KeyMap().rename("module.{...}", "{...}").split("h.{}.qkv.{...}", ["h.{}.q.{...}", "h.{}.k.{...}"], [512, 64])

    In a template `{}` stands for one number, `{...}` for any run of whole segments, `{n}` for the number that a
    stack counts. A rule takes the tensors whose names match at its turn; the others stay as they are. A map that
    was bound to a checkpoint (`bind`) also holds the fingerprints of its keys before and after (`source`, `target`),
    patterns of keys that no rule takes (`unchanged`; those that fit nothing are `unresolved_source`), model keys
    that nothing fills (`unresolved_target`), and `resident_bytes`, the most that is held at one moment for tensors
    whose parts lie in several places. `confidence` (0 to 1) and `unproven` are the words of who proposed the map.
    """

    rules: tuple[Rule, ...] = ()
    source: Fingerprint | None = None
    target: Fingerprint | None = None
    unchanged: tuple[str, ...] = ()
    unresolved_source: tuple[str, ...] = ()
    unresolved_target: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    confidence: float | None = None
    resident_bytes: int | None = None

    @classmethod
    def of(cls, value: KeyMap | Names | str | os.PathLike[str] | None) -> KeyMap:
        """Return `value` as a KeyMap.

        A mapping gives a rename an entry, or a drop where its value is None; a path is read as a map's JSON file.
        """
        if isinstance(value, KeyMap):
            return value
        if isinstance(value, (str, os.PathLike)):
            return cls.read(value)
        if value is not None and not isinstance(value, Mapping):
            raise UsageError(
                f"a KeyMap, a mapping of names or the path of a map is wanted, not {type(value).__name__}"
            )
        for old, new in (value or {}).items():
            if not isinstance(old, str) or not isinstance(new, (str, type(None))):
                raise UsageError(
                    "a key map gives texts for texts, or None to drop", where=f"{old!r}: {new!r}"
                )
        rules = [Drop(old) if new is None else Rename(old, new) for old, new in (value or {}).items()]
        return cls(tuple(rules))

    def _with(self, rule: Rule) -> KeyMap:
        return KeyMap((*self.rules, rule))

    def rename(self, source: str, target: str, *, everywhere: bool = False) -> KeyMap:
        """Add a rename from one template to another; `everywhere`: of whole segments, wherever they stand."""
        return self._with(Rename(source, target, everywhere))

    def drop(self, pattern: str) -> KeyMap:
        """Add a rule that leaves out the keys matching a template or an fnmatch pattern."""
        return self._with(Drop(pattern))

    def alias(self, source: str, target: str) -> KeyMap:
        """Add a second name for keys that match."""
        return self._with(Alias(source, target))

    def split(
        self, source: str, targets: Sequence[str], sizes: Sequence[int] | None = None, dim: int = 0
    ) -> KeyMap:
        """Add a cut of one tensor into several along `dim`; without `sizes` into equal parts."""
        return self._with(Split(source, tuple(targets), None if sizes is None else tuple(sizes), dim))

    def cat(
        self, sources: Sequence[str], target: str, dim: int = 0, sizes: Sequence[int] | None = None
    ) -> KeyMap:
        """Add a join of several tensors along `dim`, in the order of `sources`."""
        return self._with(Cat(tuple(sources), target, dim, None if sizes is None else tuple(sizes)))

    def stack(self, source: str, target: str, dim: int = 0, count: int | None = None) -> KeyMap:
        """Add a stack of the tensors that `{n}` numbers; `dim` is the new dimension."""
        return self._with(Stack(source, target, dim, count))

    def unstack(self, source: str, target: str, dim: int = 0, count: int | None = None) -> KeyMap:
        """Add the taking apart of a stack; `{n}` in the target is the number."""
        return self._with(Unstack(source, target, dim, count))

    def transpose(self, source: str, dims: tuple[int, int] = (-2, -1)) -> KeyMap:
        """Add an exchange of two dimensions."""
        return self._with(Transpose(source, dims))

    def slice_rows(self, source: str, stop: int, start: int = 0) -> KeyMap:
        """Add a choice of rows, from `start` up to `stop`."""
        return self._with(SliceRows(source, stop, start))

    def pad_rows(self, source: str, rows: int, value: float = 0, of: int | None = None) -> KeyMap:
        """Add rows of `value` until there are `rows`."""
        return self._with(PadRows(source, rows, value, of))

    def __add__(self, other: KeyMap) -> KeyMap:
        return KeyMap(self.rules + other.rules)

    @property
    def only_names(self) -> bool:
        """Whether every rule is a rename or a drop."""
        return all(is_name_rule(rule) for rule in self.rules)

    def apply(self, key: str) -> str | None:
        """Return the model's name for a checkpoint's key, or None when it is dropped.

        Raises UsageError for a map with rules that make new tensors: those need shapes (`map_headers`).
        """
        return self._names([key])[key]

    def map_keys(self, keys: Iterable[str]) -> dict[str, str | None]:
        """Return {old: new or None} for all keys. Raises UsageError when two get the same name, and as `apply`."""
        if not self.rules:
            return {key: key for key in keys}
        mapped = self._names(keys)
        refuse_meeting(mapped)
        return mapped

    def map_objects(self, keys: Iterable[str], tensors: Mapping[str, Derived]) -> dict[str, str | None]:
        """Return {old: new or None} for entries that are no tensors: renames and drops apply to them, no other rule.

        Raises UsageError when one gets the name of another, or of one of `tensors`, which are mapped already.
        """
        rules = [rule for rule in self.rules if isinstance(rule, (Rename, Drop))]
        mapped = renamed(keys, rules, [0] * len(rules))
        refuse_meeting(mapped)
        refuse_clashes(
            [
                f"{tensors[new].name} and {old} both become {new}"
                for old, new in mapped.items()
                if new is not None and new in tensors
            ]
        )
        return mapped

    def _names(self, keys: Iterable[str]) -> dict[str, str | None]:
        rules = [rule for rule in self.rules if isinstance(rule, (Rename, Drop))]
        if len(rules) != len(self.rules):
            other = next(rule for rule in self.rules if not is_name_rule(rule))
            raise UsageError(
                f"a {other.op} makes tensors, not names: a key alone can't be mapped",
                cure="use map_headers(checkpoint.tensors)",
            )
        return renamed(keys, rules, [0] * len(rules))

    @gc_paused()
    def map_headers(self, tensors: Mapping[str, Derived]) -> MappedHeaders:
        """Return what the rules make of tensors known by their headers: names, exact shapes, places of bytes.

        No file is opened. Raises UsageError with every tensor that a rule does not fit, and when two get one name.
        """
        return self._walk(tensors)[0]

    def _walk(self, tensors: Mapping[str, Derived]) -> tuple[MappedHeaders, tuple[Rule, ...]]:
        """Apply rule after rule; return the end, and the rules as each is bound to the table that it met."""
        table = dict(tensors)
        taken: set[str] = set()
        counts: list[int] = []
        bound: list[Rule] = []
        for by_name, group in groupby(self.rules, is_name_rule):
            rules = list(group)
            claimed = [0] * len(rules)
            if by_name:
                names = renamed(table, rules, claimed)  # type: ignore[arg-type]
                refuse_meeting(names)
                taken |= _stored(table, [old for old, new in names.items() if old != new])
                table = {new: table[old] for old, new in names.items() if new is not None}
                bound += rules
            else:
                for place, rule in enumerate(rules):
                    bound.append(rule.bound(table))
                    step = rule.transform(table)
                    taken |= _stored(table, step.claimed)
                    claimed[place] = len(step.claimed)
                    table = step.table
            counts += claimed
        if any(tensor.name != name for name, tensor in tensors.items()):
            # Made by another map: what became of its names is told by tensors that are called so.
            told, _ = self._walk({name: stored_as(name, tensor) for name, tensor in tensors.items()})
            return replace(told, tensors=table), tuple(bound)
        used = _stored(table, table) if taken else tensors
        mapped = MappedHeaders(
            table,
            tuple(name for name in tensors if name not in used),
            tuple(name for name in tensors if name not in taken),
            tuple(counts),
        )
        return mapped, tuple(bound)

    @gc_paused()
    def bind(
        self,
        tensors: Mapping[str, Derived],
        *,
        unresolved_source: Sequence[str] = (),
        unresolved_target: Sequence[str] = (),
        confidence: float | None = None,
        unproven: Sequence[str] = (),
    ) -> KeyMap:
        """Return the map for one checkpoint, with fingerprints, what no rule takes, and the sizes an inverse needs.

        `unresolved_source` are keys of the checkpoint that no rule takes and nothing wants, `unresolved_target` keys
        of the model that nothing fills. Raises UsageError as `map_headers` does, and for an unresolved key that a
        rule takes.
        """
        mapped, rules = self._walk(tensors)
        left = set(mapped.unchanged)
        wrong = [key for key in unresolved_source if key not in left]
        if wrong:
            raise UsageError(
                f"{len(wrong)} keys are called unresolved, and a rule takes them or they are not there",
                where=", ".join(wrong[:5]),
            )
        unresolved = set(unresolved_source)
        shards = {ref.shard for tensor in tensors.values() for ref in leaves(tensor)}
        return KeyMap(
            rules,
            source=Fingerprint.of(tensors),
            target=Fingerprint.of(mapped.tensors),
            unchanged=tuple(collapse(key for key in mapped.unchanged if key not in unresolved)),
            unresolved_source=tuple(collapse(unresolved_source)),
            unresolved_target=tuple(collapse(unresolved_target)),
            unproven=tuple(unproven),
            confidence=confidence,
            resident_bytes=residence(mapped.tensors, sorted(shards)).peak,
        )

    def require_fit(self, tensors: Mapping[str, Derived], mapped: MappedHeaders | None = None) -> None:
        """Raise UsageError unless these are the tensors that the map was bound to; an unbound map fits any.

        Checked are both fingerprints, and that every key is taken by a rule or listed.
        """
        if self.source is not None and Fingerprint.of(tensors) != self.source:
            raise UsageError(
                "the key map was written for another checkpoint",
                where=f"{self.source.keys:,} names and shapes are known, the {len(tensors):,} here are others",
                cure="write a map for this checkpoint, or keep nothing but its version and rules",
            )
        if self.source is None and self.target is None:
            return
        mapped = mapped or self.map_headers(tensors)
        if self.target is not None and Fingerprint.of(mapped.tensors) != self.target:
            raise UsageError(
                "the key map's rules lead to other keys than it says: it was changed",
                where=f"{self.target.keys:,} keys are named, the rules give {len(mapped.tensors):,}",
                cure="bind it again: KeyMap.bind(checkpoint.tensors)",
            )
        if self.source is not None:
            self._require_account(mapped)

    def _require_account(self, mapped: MappedHeaders) -> None:
        odd = unaccounted((*self.unchanged, *self.unresolved_source), mapped.unchanged)
        if odd:
            raise UsageError(
                f"{len(odd)} keys are neither taken by a rule nor listed, or both, or listed and not there",
                where=", ".join(odd[:5]),
                cure="bind the map again: KeyMap.bind(checkpoint.tensors)",
            )

    def invert(self) -> KeyMap:
        """Return the map from the model's keys to the checkpoint's. Raises NoInverseError where a rule has none."""
        return KeyMap(
            tuple(rule.invert() for rule in reversed(self.rules)),
            source=self.target,
            target=self.source,
            unchanged=self.unchanged,
            unresolved_source=self.unresolved_source,
            unproven=self.unproven,
            confidence=self.confidence,
            resident_bytes=None,
        )

    def to_json(self) -> str:
        """Return the map as a JSON document."""
        return document.to_text(self)

    @classmethod
    def from_json(cls, text: str) -> KeyMap:
        """Read what `to_json` wrote. Raises UsageError for anything else: nothing is guessed, nothing skipped."""
        return cls(**document.parts_of(text))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> KeyMap:
        """Read a map's JSON file. Raises NotFoundError, UsageError."""
        try:
            return cls.from_json(document.read_text(path))
        except UsageError as error:
            where = f"{os.fspath(path)}: {error.where}" if error.where else os.fspath(path)
            raise UsageError(error.what, where=where, cure=error.cure) from error


def _stored(table: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    return {ref.name for name in names for ref in leaves(table[name])}
