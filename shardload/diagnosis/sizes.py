"""E-CONFIG: the sizes that the stored shapes show differ from those of config.json and the model."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import TYPE_CHECKING

from shardload.diagnosis.config_fields import (
    Field,
    counts_groups,
    explaining,
    fields_saying,
    is_same_change,
    said_by,
)
from shardload.diagnosis.finding import Case, Finding, change_of_config
from shardload.diagnosis.incomplete import is_router
from shardload.diagnosis.pairing.words import words_of
from shardload.diagnosis.patch_grid import image_fields
from shardload.diagnosis.shape_pairs import whole_templates
from shardload.diagnosis.vocabulary import vocabulary_of
from shardload.keys import collapse

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shardload.diagnosis.finding import Shape
    from shardload.diagnosis.pairing.key_family import KeyFamily
    from shardload.diagnosis.shape_pairs import ShapePair

_FIELDS = {
    "hidden size": ("hidden", "d_model", "n_embd", "dim", "width"),
    "feed-forward size": ("intermediate", "ffn", "ffw", "n_inner", "d_ff"),
    "number of experts": ("expert",),
}
_MOST = 8  # lines of evidence


class SizesRule:
    """Finds the fields of the config that would give the model the stored shapes, where names fit and shapes do not."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding with every size that differs; none where shapes agree or nothing explains them."""
        pairs = case.shape_pairs
        if not pairs or vocabulary_of(case, pairs):
            return ()  # E-VOCAB reports that
        changes = Changes(case, pairs)
        if not changes.found:
            return ()
        return (
            Finding(
                "E-CONFIG",
                "the model has other sizes than the checkpoint: " + ", ".join(changes.found),
                explained=len(changes.explained),
                nbytes=case.nbytes(case.shape_mismatches),
                cure=change_of_config(changes.found),
                evidence=tuple(changes.lines[:_MOST]),
                confidence=0.9,
                settles=frozenset(changes.explained),
            ),
        )


class Changes:
    """The changes of a config that explain pairs of shapes, with evidence.

    `found` maps what has another size to the fields that say it, each with its new value; several fit equally well.
    Sizes that follow from another change as a multiple of it (three times the hidden size) are no changes of their own.
    """

    def __init__(self, case: Case, pairs: Sequence[ShapePair]) -> None:
        self.found: dict[str, list[Field]] = {}
        self.lines: list[str] = []
        self._told: set[tuple[str, int, int]] = set()
        self._case = case
        self._by_the_whole()
        # Where one layer has the model's size and another has not, no number of the config is wrong.
        self._whole = whole_templates(case.solution)
        self._shown: dict[int, set[str]] = {}
        # Keys of one template and one pair of shapes are judged together.
        alike: dict[tuple[str, Shape, Shape], list[str]] = {}
        for key, model, stored, template in pairs:
            alike.setdefault((template, model, stored), []).append(key)
        sizes = {group: _sizes(*group[1:]) for group in alike}
        changes = [(group[0], *change) for group in sizes for change in sizes[group]]
        # Where q has changed like k and v, each head is wider, and the number of heads is right.
        self._of_heads = {
            Fraction(model, stored) for template, model, stored in changes if stored and _is_query(template)
        }
        self._kept: dict[str, set[int]] = {}
        for template, *shapes in alike:
            kept = {one for one, two in zip(*shapes, strict=False) if one == two}
            self._kept.setdefault(template, set()).update(kept)
        changed: dict[tuple[int, int], list[str]] = {}
        for group, each in sizes.items():
            for change in each:
                changed.setdefault(change, []).extend(alike[group])
        for template, one, two in dict.fromkeys(changes):
            self._by_name(template, one, two, changed[one, two])
        self._by_patches([each for each in changes if each not in self._told])
        self.explained = [
            key
            for group, each in sizes.items()
            if each and all(self._explains(group[0], *change) for change in each)
            for key in alike[group]
        ]

    def _explains(self, template: str, model: int, stored: int) -> bool:
        return (template, model, stored) in self._told or any(
            is_same_change(field, template, model, stored)
            for fields in self.found.values()
            for field in fields
        )

    def _by_the_whole(self) -> None:
        """Note the sizes that the shapes of many keys show together."""
        have = infer_sizes(self._case.solution.stored)
        want = infer_sizes(self._case.solution.wanted)
        for what, hints in _FIELDS.items():
            model, stored = want.get(what), have.get(what)
            if model is None or stored is None or model == stored:
                continue
            config = self._case.config
            names = next((found for hint in hints if (found := fields_saying(config, model, hint))), [""])
            if len(names) > 1:
                continue  # parts of a model with a size each: the names of their keys say which
            name = names[0]
            if name or not self._explains(what, model, stored):
                self._note(what, [Field(name, model, stored)], what, model, stored)

    def _by_name(self, template: str, model: int, stored: int, alike: Sequence[str]) -> None:
        """Note the fields that the name of some keys and one of their sizes point to."""
        if template in self._whole:
            return
        fields = [
            field
            for field in explaining(self._case.config, template, model, stored)
            if not self._is_right(field)
            and not (stored and counts_groups(field.name) and Fraction(model, stored) in self._of_heads)
        ]
        known = {field.name for found in self.found.values() for field in found}
        if self._explains(template, model, stored):
            # Of two sizes of one number, that of the tensor's own name may be the one that has not changed.
            fields = [
                each for each in fields if each.value == model and each.value not in self._kept[template]
            ]
        if fields and known.isdisjoint(field.name for field in fields):
            shown = collapse(alike)
            what = f"{', '.join(shown[:3])}{' …' if len(shown) > 3 else ''}"
            self._note(" or ".join(field.name for field in fields), fields, what, model, stored)
        if fields:
            self._told.add((template, model, stored))

    def _by_patches(self, changes: Iterable[tuple[str, int, int]]) -> None:
        """Note the size of an image where a table of positions, which may fit, would have other rows without it."""
        fields = [field for found in self.found.values() for field in found]
        patches = {field.name: field.new for field in fields if field.name.endswith("patch_size")}
        fitting = [(key, size, size) for key, shapes in self._whole.items() for size in set().union(*shapes)]
        for template, model, stored in (*changes, *(fitting if patches else ())):
            found = list(image_fields(self._case.config, template, model, stored, patches))
            if len(found) != 1:
                continue
            self._told.add((template, model, stored))
            if found[0].new != found[0].value and found[0].name not in self.found:
                self._note(found[0].name, found, template, model, stored)

    def _is_right(self, field: Field) -> bool:
        """Whether a tensor that fits shows the field's value: with another one it would not fit."""
        size = field.value
        if size not in self._shown:
            keys = [key for key, shapes in self._whole.items() if any(size in shape for shape in shapes)]
            fields = [explaining(self._case.config, key, size, size) for key in keys]
            self._shown[size] = {found.name for each in fields for found in each if found.value == size}
        return field.name in self._shown[size]

    def _note(self, name: str, fields: list[Field], what: str, model: int, stored: int) -> None:
        says = ", ".join(said_by(self._case.config, field) for field in fields if field.name)
        told = f", config.json says {says}" if says else ""
        self.lines.append(f"{what}: {stored} in the checkpoint, {model} in the model{told}")
        self.found[name] = fields


def _is_query(template: str) -> bool:
    return "q" in {word for segment in template.split(".")[-2:] for word in words_of(segment)}


def _sizes(model: Shape, stored: Shape) -> list[tuple[int, int]]:
    """Return the sizes that differ, as (model, stored); none where the number of dimensions differs."""
    if len(model) != len(stored):
        return []
    return [(one, two) for one, two in zip(model, stored, strict=True) if one != two]


def infer_sizes(families: Iterable[KeyFamily]) -> dict[str, int]:
    """Return the sizes that keys and shapes show; a size that is not clear is left out.

    The hidden size is the most frequent length of a norm, the feed-forward size the columns of the down projection, the
    number of experts the rows of the router.
    """
    norms: Counter[int] = Counter()
    found: dict[str, Counter[int]] = {name: Counter() for name in _FIELDS}
    for family in families:
        segments = family.segments
        words = {word for segment in segments[-3:] for word in words_of(segment)}
        for shape, count in Counter(family.members.values()).items():
            if len(shape) == 1 and "norm" in words and segments[-1] == "weight":
                norms[shape[0]] += count
            elif len(shape) == 2:
                if "down" in words and "experts" not in words:
                    found["feed-forward size"][shape[1]] += count
                elif is_router(family.template):
                    found["number of experts"][shape[0]] += count
    found["hidden size"] = norms
    return {name: counts.most_common(1)[0][0] for name, counts in found.items() if counts}
