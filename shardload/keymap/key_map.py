"""KeyMap: ordered rules that turn a checkpoint's tensors into a model's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from shardload._system.gc_freeze import gc_frozen
from shardload.errors import UsageError
from shardload.keymap import document
from shardload.keymap.derived import leaves, stored_as
from shardload.keymap.drop import Drop
from shardload.keymap.edited_table import EditedTable
from shardload.keymap.entry import entry_rules
from shardload.keymap.fingerprint import Fingerprint
from shardload.keymap.key_pattern import unaccounted
from shardload.keymap.mapped import MappedHeaders, is_name_rule, refuse_meeting, renamed
from shardload.keymap.packed_parts import has_parts, moved_parts
from shardload.keymap.rename import Rename
from shardload.keymap.residence import residence
from shardload.keymap.rule import refuse_clashes
from shardload.keymap.rule_chain import RuleChain
from shardload.keymap.rules import RULES
from shardload.keys import collapse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardload.keymap.derived import Derived
    from shardload.keymap.rule import Rule

Names = Mapping[str, str | Sequence[str] | None]


@dataclass(frozen=True)
class KeyMap(RuleChain):
    """Ordered rules that make a model's tensors of a checkpoint's; immutable, each method returns a new map.

        >>> from shardload import KeyMap
        >>> key_map = KeyMap().rename("module.{...}", "{...}").drop("*.inv_freq")
        >>> key_map.map_keys(["module.h.0.w", "module.h.0.rope.inv_freq"])
        {'module.h.0.w': 'h.0.w', 'module.h.0.rope.inv_freq': None}

    In a template `{}` stands for one number, `{...}` for any run of whole segments, `{n}` for the number that a
    stack counts. A rule takes the tensors whose names match when its turn comes; the others stay as they are.

    A map that was bound to a checkpoint (`bind`) also holds the fingerprints of the keys before and after (`source`,
    `target`), patterns of the keys that no rule takes (`unchanged`; those that the model has no place for are
    `unresolved_source`), the model's keys that nothing fills (`unresolved_target`), and `resident_bytes`, the most
    that is held at one moment for joined tensors whose parts lie apart. `confidence` (0 to 1) and `unproven` are
    set by whatever proposed the map, such as the doctor.
    """

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
        """Return `value` as a KeyMap: a map, a mapping of names, the path of a map's JSON file, or None for no rules.

            >>> from shardload import KeyMap
            >>> [rule.op for rule in KeyMap.of({"module.{...}": "{...}", "*.inv_freq": None}).rules]
            ['rename', 'drop']

        An entry of a mapping is a rename, a drop where its value is None, or several names of one tensor:
        `{"embed.weight": ["embed.weight", "head.weight"]}`. Raises UsageError, NotFoundError.
        """
        if isinstance(value, KeyMap):
            return value
        if isinstance(value, (str, os.PathLike)):
            return cls.read(value)
        if value is not None and not isinstance(value, Mapping):
            raise UsageError(
                f"a key map is a KeyMap, a mapping of names or the path of a map, not a {type(value).__name__}"
            )
        return cls(tuple(rule for old, new in (value or {}).items() for rule in entry_rules(old, new)))

    def apply(self, key: str) -> str | None:
        """Return the model's name for a checkpoint's key, or None where the key is dropped.

            >>> from shardload import KeyMap
            >>> KeyMap().rename("module.{...}", "{...}").apply("module.h.0.w")
            'h.0.w'

        Raises UsageError for a map with rules that make new tensors: those need shapes (`map_headers`).
        """
        return self._names([key])[key]

    def map_keys(self, keys: Iterable[str]) -> dict[str, str | None]:
        """Return {old: new or None} for all keys.

            >>> from shardload import KeyMap
            >>> KeyMap().rename("module.{...}", "{...}").map_keys(["module.w", "b"])
            {'module.w': 'w', 'b': 'b'}

        Raises UsageError when two keys get the same name, and where `apply` does.
        """
        if not self.rules:
            return {key: key for key in keys}
        mapped = self._names(keys)
        refuse_meeting(mapped)
        return mapped

    def map_objects(self, keys: Iterable[str], tensors: Mapping[str, Derived]) -> dict[str, str | None]:
        """Return {old: new or None} for entries that are no tensors: renames and drops apply to them, no other rule.

            >>> from shardload import KeyMap
            >>> KeyMap().rename("module.{...}", "{...}").transpose("w").map_objects(["module._extra_state"], {})
            {'module._extra_state': '_extra_state'}

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

    @gc_frozen
    def map_headers(self, tensors: Mapping[str, Derived]) -> MappedHeaders:
        """Return what the rules make of tensors that are known by their headers: names, exact shapes, places of bytes.

            >>> import torch
            >>> from shardload import KeyMap, open_checkpoint
            >>> torch.save({"qkv": torch.zeros(6, 2)}, "model.bin")
            >>> mapped = KeyMap().split("qkv", ["q", "k", "v"]).map_headers(open_checkpoint("model.bin").tensors)
            >>> {name: tensor.shape for name, tensor in mapped.tensors.items()}
            {'q': (2, 2), 'k': (2, 2), 'v': (2, 2)}

        No file is opened. A part or a transpose of a stored tensor is a TensorRef again, several joined are a Joined.
        Raises UsageError with every tensor that a rule does not fit, and when two tensors get one name.
        """
        return self._walk(tensors)[0]

    def made(self, tensors: Mapping[str, Derived]) -> dict[str, Derived]:
        """Return the tensors of `map_headers`, without an account of what becomes of each stored name: sooner.

            >>> import torch
            >>> from shardload import KeyMap, open_checkpoint
            >>> torch.save({"module.w": torch.zeros(2)}, "model.bin")
            >>> list(KeyMap().rename("module.{...}", "{...}").made(open_checkpoint("model.bin").tensors))
            ['w']

        Raises UsageError as `map_headers` does.
        """
        # Parts of packed weights follow those that no rule takes: then the account is needed.
        return self._walk(tensors, told=has_parts(tensors))[0].tensors

    def _walk(
        self, tensors: Mapping[str, Derived], *, told: bool = True, binds: bool = False
    ) -> tuple[MappedHeaders, tuple[Rule, ...]]:
        """Apply rule after rule; return the end, and the rules as each is bound to the table that it met.

        With `binds`, rules that need their model become rules that a file can hold; without, no rules are returned.
        Without `told` there is nothing but tensors in the end.
        """
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
                if told:
                    taken |= _stored(table, [old for old, new in names.items() if old != new])
                table = {new: table[old] for old, new in names.items() if new is not None}
                bound += rules
            else:
                edited = EditedTable(table)
                for place, rule in enumerate(rules):
                    part = edited.part(rule.templates)
                    if binds:
                        bound += _literal(rule, part) if rule.op not in RULES else [rule.bound(part)]
                    step = rule.transform(part)
                    if told:
                        taken |= _stored(part, step.claimed)
                    claimed[place] = len(step.claimed)
                    edited.take(step)
                table = edited.table
            counts += claimed
        if not told:
            return MappedHeaders(table, (), (), ()), ()
        if moved := moved_parts(tensors, taken, table):
            table = {moved.get(name, name): tensor for name, tensor in table.items()}
            taken |= {tensors[name].name for name in moved}
        if any(tensor.name != name for name, tensor in tensors.items()):
            # These were made by another map: the names are accounted for as if tensors were stored under them.
            account, _ = self._walk({name: stored_as(name, tensor) for name, tensor in tensors.items()})
            return replace(account, tensors=table), tuple(bound)
        used = _stored(table, table) if taken else tensors
        mapped = MappedHeaders(
            table,
            tuple(name for name in tensors if name not in used),
            tuple(name for name in tensors if name not in taken),
            tuple(counts),
        )
        return mapped, tuple(bound)

    @gc_frozen
    def bind(
        self,
        tensors: Mapping[str, Derived],
        *,
        unresolved_source: Sequence[str] = (),
        unresolved_target: Sequence[str] = (),
        confidence: float | None = None,
        unproven: Sequence[str] = (),
    ) -> KeyMap:
        """Return the map for one checkpoint: with fingerprints, what no rule takes, and the sizes for an inverse.

            >>> import torch
            >>> from shardload import KeyMap, open_checkpoint
            >>> torch.save({"gate": torch.zeros(3), "up": torch.zeros(5), "norm": torch.zeros(2)}, "model.bin")
            >>> bound = KeyMap().cat(["gate", "up"], "gate_up").bind(open_checkpoint("model.bin").tensors)
            >>> bound.rules[0].sizes, bound.unchanged, bound.resident_bytes
            ((3, 5), ('norm',), 32)

        `unresolved_source` are keys of the checkpoint that no rule takes and nothing wants, `unresolved_target` keys
        of the model that nothing fills. Raises UsageError as `map_headers` does, and for an unresolved key that a
        rule takes.
        """
        mapped, rules = self._walk(tensors, binds=True)
        left = set(mapped.unchanged)
        wrong = [key for key in unresolved_source if key not in left]
        if wrong:
            raise UsageError(
                f"{len(wrong)} keys are given as unresolved, but a rule takes them or the checkpoint lacks them",
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

            >>> import torch
            >>> from shardload import KeyMap, open_checkpoint
            >>> torch.save({"h.0.w": torch.zeros(2)}, "model.bin")
            >>> bound = KeyMap().rename("h.{}.w", "layers.{}.w").bind(open_checkpoint("model.bin").tensors)
            >>> try:
            ...     bound.require_fit({})
            ... except ValueError as error:
            ...     print(error.what)
            the key map was written for another checkpoint

        Both fingerprints are checked, and that every key is taken by a rule or listed.
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
                "the key map's rules give other keys than its target names: the map was edited",
                where=f"{self.target.keys:,} keys are named, the rules give {len(mapped.tensors):,}",
                cure="bind it again: KeyMap.bind(checkpoint.tensors)",
            )
        if self.source is not None:
            self._require_account(mapped)

    def _require_account(self, mapped: MappedHeaders) -> None:
        odd = unaccounted((*self.unchanged, *self.unresolved_source), mapped.unchanged)
        if odd:
            raise UsageError(
                f"{len(odd)} keys are not accounted for: a rule takes each or the map lists it, never both",
                where=", ".join(odd[:5]),
                cure="bind the map again: KeyMap.bind(checkpoint.tensors)",
            )

    def invert(self) -> KeyMap:
        """Return the map from the model's keys to the checkpoint's.

            >>> from shardload import KeyMap
            >>> KeyMap().rename("h.{}.{...}", "layers.{+1}.{...}").invert().apply("layers.1.w")
            'h.0.w'

        Raises NoInverseError where a rule has no inverse, or has none until it is bound (`bind`).
        """
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
        """Return the map as a JSON document (docs/key_maps.md has the fields).

        >>> from shardload import KeyMap
        >>> print(KeyMap().drop("*.inv_freq").to_json())
        {
          "version": 1,
          "rules": [
            {"op": "drop", "pattern": "*.inv_freq"}
          ]
        }
        """
        return document.to_text(self)

    @classmethod
    def from_json(cls, text: str) -> KeyMap:
        """Read what `to_json` wrote.

            >>> from shardload import KeyMap
            >>> key_map = KeyMap().drop("*.inv_freq")
            >>> KeyMap.from_json(key_map.to_json()) == key_map
            True

        Raises UsageError for anything else: no field is guessed or skipped.
        """
        return cls(**document.parts_of(text))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> KeyMap:
        """Read a map's JSON file.

            >>> from pathlib import Path
            >>> from shardload import KeyMap
            >>> size = Path("map.json").write_text(KeyMap().drop("*.inv_freq").to_json())
            >>> KeyMap.read("map.json").apply("rope.inv_freq") is None
            True

        Raises NotFoundError, UsageError.
        """
        try:
            return cls(**document.parts_of(document.read_bytes(path)))
        except UsageError as error:
            error.where = f"{os.fspath(path)}: {error.where}" if error.where else os.fspath(path)
            raise


def _literal(rule: Rule, table: Mapping[str, Derived]) -> tuple[Rule, ...]:
    from shardload.keymap.literal import literal_rules

    stored = {name: stored_as(name, tensor) for name, tensor in table.items()}
    made = rule.transform(dict(stored)).table
    return literal_rules(stored, made, lambda rules: KeyMap(rules).map_headers(stored).tensors)


def _stored(table: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    return {ref.name for name in names for ref in leaves(table[name])}
