"""Case and Finding: what a rule of the diagnosis gets and returns. A new rule is a new file beside this one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from shardload.diagnosis.adapter_keys import adapter_keys, has_base
from shardload.diagnosis.pairing.solution import Solution
from shardload.diagnosis.rule_text import as_names, rule_text
from shardload.diagnosis.shape_pairs import mismatched_shapes
from shardload.errors import Cures, Wording, keyword
from shardload.errors.wording import plain_keywords

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from shardload.diagnosis.config_fields import Field
    from shardload.diagnosis.pairing.board import Link
    from shardload.diagnosis.shape_pairs import ShapePair
    from shardload.keymap import Derived, KeyMap, Rule
    from shardload.where import Where

Shape = tuple[int, ...]
_FOR_THE_WHOLE = frozenset({"settles", "step", "after", "choices"})  # what the whole cure is made of


@dataclass(frozen=True)
class Case:
    """A model and a checkpoint that disagree: names, shapes and headers, no weights.

    `own_rules` are those of the caller's key map. `slots` are the model's keys that a checkpoint has to fill; `stored`
    are the checkpoint's tensors under the names that were compared. `missing`, `unexpected` and `shape_mismatches` are
    the keys of faults, and so are those `refused`, which their slots can't take for another reason than their shape;
    `dropped` are missing keys that are stored under these names, and that the caller's key map drops.
    `module_classes` maps the path of a module to the name of its class, where there is a model. `config` is
    config.json, `where` the place of the checkpoint, `files` how many files its weights are in, and `beside` the
    names of all files there; `adapter_base` is the base that the settings of an adapter there name.
    """

    slots: Mapping[str, Shape]
    stored: Mapping[str, Derived]
    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    shape_mismatches: Sequence[str] = ()
    dropped: Sequence[str] = ()
    refused: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    module_classes: Mapping[str, str] = field(default_factory=dict)
    own_rules: tuple[Rule, ...] = ()
    where: Where | None = None
    files: int = 0
    beside: Collection[str] = ()
    adapter_base: str = ""

    @classmethod
    def of(
        cls,
        slots: Mapping[str, Shape],
        stored: Mapping[str, Derived],
        config: Mapping[str, Any] | None = None,
        module_classes: Mapping[str, str] | None = None,
        where: Where | None = None,
    ) -> Case:
        """Return the case of two sets of keys: the faults follow from names and shapes."""
        return cls(
            slots,
            stored,
            missing=[key for key in slots if key not in stored],
            unexpected=[key for key in stored if key not in slots],
            shape_mismatches=[key for key in stored if key in slots and slots[key] != stored[key].shape],
            config=config or {},
            module_classes=module_classes or {},
            where=where,
        )

    @cached_property
    def solution(self) -> Solution:
        """What pairing the keys of both sides has found, and the map of it, tried on the headers."""
        # These have no place in the model, and would outnumber those that have.
        beside = set(self.adapter_keys)
        faulty = {*self.unexpected, *self.shape_mismatches} - beside
        open_slots = {*self.missing, *self.shape_mismatches}
        fitting = {key for key, ref in self.stored.items() if self.slots.get(key) == ref.shape}
        stored = {key: ref for key, ref in self.stored.items() if key in faulty or key in fitting}
        wanted = {key: shape for key, shape in self.slots.items() if key in open_slots or key in fitting}
        return Solution.of(stored, wanted, self.config, self.module_classes)

    @cached_property
    def adapter_keys(self) -> tuple[str, ...]:
        """The keys of a LoRA adapter that is stored with its base, for a model without layers for it."""
        keys = adapter_keys(self.unexpected, self.slots)
        return keys if has_base(self.stored, keys) else ()

    @cached_property
    def shape_pairs(self) -> list[ShapePair]:
        """The tensors whose names fit, perhaps after a rename, and whose shapes do not."""
        return mismatched_shapes(self.solution)

    def nbytes(self, keys: Iterable[str]) -> int:
        """Return the bytes of stored tensors."""
        return sum(ref.nbytes for ref in map(self.stored.get, keys) if ref is not None)


@dataclass(frozen=True)
class Finding:
    """One cause, what it explains, and what cures it.

    `code` is stable, such as "E-WRAP"; "W-" marks what needs no cure. `explained` counts the checkpoint's keys that
    the cure settles (the model's, where the checkpoint lacks them), `nbytes` their bytes. `evidence` are lines that
    show the cause. `confidence` lies between 0 and 1, `margin` is the distance to the runner-up. `cure` is a text; one
    that names keyword arguments is a `Wording`. `key_map` is the cure as a map, where there is one. `unproven` says
    what names and shapes can't show: such a map is never applied unasked. `declines` marks checkpoints that this
    version does not load at all, `unsafe` files that are corrupt. `settles` are the keys that the cure settles without
    a map; `step` is the choice of the cure that is taken beside other steps, where that is not the first one, and
    `after` what is said after the steps. `choices` are explanations that fit equally well, each as what it means and
    its step or its rules.
    """

    code: str
    cause: str
    explained: int
    cure: str
    key_map: KeyMap | None = None
    declines: bool = False
    nbytes: int = 0
    evidence: tuple[str, ...] = ()
    confidence: float = 1.0
    margin: float = 1.0
    unproven: tuple[str, ...] = ()
    unsafe: bool = False
    settles: frozenset[str] = field(default=frozenset(), repr=False)
    step: str = ""
    after: str = ""
    choices: tuple[tuple[str, str | KeyMap], ...] = field(default=(), repr=False)

    @classmethod
    def of_links(cls, case: Case, code: str, links: Sequence[Link], cause: str, rules: KeyMap) -> Finding:
        """Return the finding of links of one kind, with the rules that cure them."""
        stored = {key for link in links for family in link.stored for key in family.names}
        made = {key for link in links for family in link.wanted for key in family.names}
        return cls(
            code,
            cause,
            explained=len(made) if all(link.kind == "alias" for link in links) else len(stored),
            nbytes=case.nbytes(case.solution.stored_names(stored)),
            cure=map_text(rules),
            key_map=rules,
            evidence=tuple(rule_text(rule) for rule in rules.rules),
            confidence=min(link.confidence for link in links),
            margin=min(link.margin for link in links),
            unproven=tuple(dict.fromkeys(link.unproven for link in links if link.unproven)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON data, with the keywords that the cure names (None: a value that you choose)."""
        rules = [rule.to_dict() for rule in self.key_map.rules] if self.key_map else None
        plain = {name: value for name, value in vars(self).items() if name not in _FOR_THE_WHOLE}
        return {
            **plain,
            "evidence": list(self.evidence),
            "unproven": list(self.unproven),
            "key_map": rules,
            "keywords": plain_keywords(self.cure),
        }


def change_of_config(changes: Mapping[str, Sequence[Field]], note: str = "") -> str:
    """Return the cure that gives sizes other values; `note` says what that means.

    `changes` maps what is changed to the fields that say it: a field without a name is none that config.json has.
    """
    texts = [
        " or ".join(f"{field.name or what} to {json.dumps(field.new)}" for field in fields)
        for what, fields in changes.items()
    ]
    if all(field.name for fields in changes.values() for field in fields):
        first = f"set {', '.join(texts)} in config.json{note}"
    else:
        first = f"make the model with other sizes: {', '.join(texts)}{note}"
    return Cures(first, Wording("set it on the config that you pass: {config}", config=...))


def map_text(rules: KeyMap) -> str:
    """Return a part of a map as a cure: the mapping that `key_map` takes, or how many rules of the map it is."""
    names, count = as_names(rules.rules), len(rules.rules)
    return f"{count} rule{'s' * (count != 1)} of the map" if names is None else keyword("key_map", names)


class FindingRule(Protocol):
    """Looks for one kind of cause in a case."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return findings, the strongest first; none where the rule does not apply."""
