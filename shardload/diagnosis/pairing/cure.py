"""Cure: the links of a board as rules of a key map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.pairing.key_family import KeyFamily, fill
from shardload.diagnosis.pairing.renames import rename_rules
from shardload.diagnosis.pairing.stacked import without_index
from shardload.keymap import Alias, Cat, Drop, KeyMap, Rename, Split, Stack, Transpose, Unstack
from shardload.keymap.mapped import renamed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from shardload.diagnosis.pairing.board import Board, Link
    from shardload.keymap import Rule

_NAMES = ("rename", "transpose")
_MARK = 700_000_001
_TRIED = 24  # first and last keys of a family that renames are tried on; the whole map is tried on all keys


class Cure:
    """The rules for the links of a board: `whole` in the order of application, `of(kind)` for one kind of link."""

    def __init__(self, board: Board) -> None:
        links = [link for link in board.links if link.kind in _NAMES and not link.shape_mismatch]
        pairs, names = _wanted_names(links)
        kept = [family.template for family in board.exact]
        for family in board.exact:
            names |= {key: key for key in _some(family)}
        self.renames = rename_rules(pairs, kept, names)
        astray = self._astray(board)
        if astray:
            names |= {key: key for family in astray for key in _some(family)}
            self.renames = rename_rules(pairs, [*kept, *(family.template for family in astray)], names)
        self._after = self._renamed(
            _marked(family) for link in board.links if not link.shape_mismatch for family in link.stored
        )
        self.structure: list[tuple[Link, tuple[Rule, ...]]] = []
        for link in board.links:
            if link.shape_mismatch:
                continue  # no name cures a shape
            rules = _RULES[link.kind](link, self._now(link))
            if rules:
                self.structure.append((link, tuple(rules)))

    def _astray(self, board: Board) -> list[KeyFamily]:
        """Return families without a link that a rule for their neighbours gives a name of the model's."""
        if not self.renames.rules:
            return []
        open_names = {name for family in board.wanted for name in family.names}
        some = {id(family): _some(family) for family in board.stored}
        after = self._renamed(key for keys in some.values() for key in keys)
        return [
            family for family in board.stored if any(after[key] in open_names for key in some[id(family)])
        ]

    def _renamed(self, names: Iterable[str]) -> dict[str, str | None]:
        """Return {name: what the renames make of it}, of all names at once: a map may have a rename for each."""
        rules = [rule for rule in self.renames.rules if isinstance(rule, Rename)]
        return renamed(names, rules, [0] * len(rules))

    @property
    def whole(self) -> KeyMap:
        """The map of all links."""
        rules = list(self.renames.rules)
        # Second names last: by then their source has its final name.
        ordered = sorted(self.structure, key=lambda item: item[0].kind == "alias")
        return KeyMap((*rules, *dict.fromkeys(rule for _, group in ordered for rule in group)))

    def of(self, kind: str) -> KeyMap:
        """Return the rules for one kind of link."""
        return KeyMap(tuple(rule for link, rules in self.structure if link.kind == kind for rule in rules))

    def _now(self, link: Link) -> list[str]:
        """Return the templates that a link's stored families have after the renames."""
        return [self._template_now(family) for family in link.stored]

    def _template_now(self, family: KeyFamily) -> str:
        if not self.renames.rules:
            return family.template
        name = self._after[_marked(family)] or family.template
        for place in range(family.arity):
            name = name.replace(str(_MARK + place), "{}", 1)
        return name


def _marked(family: KeyFamily) -> str:
    """Return a name of a family with numbers that occur in no template: those found in a new name are the indices."""
    return fill(family.template, tuple(_MARK + place for place in range(family.arity)))


def _wanted_names(links: Sequence[Link]) -> tuple[dict[str, str], dict[str, str]]:
    pairs: dict[str, str] = {}
    names: dict[str, str] = {}
    for link in links:
        old, new = link.stored[0], link.wanted[0]
        pairs[old.template] = with_offsets(new.template, link.offset)
        for indices in _some_indices(old):
            names[old.key(indices)] = new.key(shifted(indices, link.offset))
    return pairs, names


def _some(family: KeyFamily) -> list[str]:
    return [family.key(indices) for indices in _some_indices(family)]


def _some_indices(family: KeyFamily) -> list[tuple[int, ...]]:
    """Return the first and the last indices of a family; a rule treats the ones between alike."""
    everything = list(family.members)
    return everything if len(everything) <= 2 * _TRIED else everything[:_TRIED] + everything[-_TRIED:]


def shifted(indices: tuple[int, ...], offset: tuple[int, ...]) -> tuple[int, ...]:
    """Return indices with an offset added."""
    return tuple(a + b for a, b in zip(indices, offset, strict=True)) if offset else indices


def with_offsets(template: str, offset: tuple[int, ...]) -> str:
    """Return a template whose placeholders add the offset to each number: `layers.{-1}`."""
    if not any(offset):
        return template
    parts = template.split("{}")
    holes = [f"{{{step:+d}}}" if step else "{}" for step in offset]
    return parts[0] + "".join(hole + part for hole, part in zip(holes, parts[1:], strict=True))


def _no_rules(_: Link, __: Sequence[str]) -> list[Rule]:
    return []


def _transpose(link: Link, _: Sequence[str]) -> list[Rule]:
    return [Transpose(link.wanted[0].template)]


def _split(link: Link, now: Sequence[str]) -> list[Rule]:
    sizes = tuple((part.shape or (0,) * 9)[link.dim] for part in link.wanted)
    exact = sizes if all(sizes) else None
    return [Split(now[0], tuple(part.template for part in link.wanted), exact, link.dim)]


def _cat(link: Link, now: Sequence[str]) -> list[Rule]:
    return [Cat(tuple(now), link.wanted[0].template, link.dim)]


def _stack(link: Link, now: Sequence[str]) -> list[Rule]:
    target = link.wanted[0].template
    rules: list[Rule] = [Transpose(template) for template in now] if link.turned else []
    if len(now) == 1:
        return [*rules, Stack(_counting(now[0], link.counted), target)]
    aside = [without_index(template, link.counted) for template in now]
    rules += [Stack(_counting(old, link.counted), new) for old, new in zip(now, aside, strict=True)]
    return [*rules, Cat(tuple(aside), target, link.dim)]


def _unstack(link: Link, now: Sequence[str]) -> list[Rule]:
    targets = [family.template for family in link.wanted]
    rules: list[Rule] = []
    if len(targets) == 1:
        rules.append(Unstack(now[0], _counting(targets[0], link.counted)))
    else:
        aside = [without_index(template, link.counted) for template in targets]
        rules.append(Split(now[0], tuple(aside), None, link.dim))
        rules += [Unstack(old, _counting(new, link.counted)) for old, new in zip(aside, targets, strict=True)]
    return [*rules, *(Transpose(template) for template in targets if link.turned)]


def _alias(link: Link, now: Sequence[str]) -> list[Rule]:
    return [Alias(now[0], link.wanted[0].template)]


def _drop(_: Link, now: Sequence[str]) -> list[Rule]:
    return [Drop(template) for template in now]


def _counting(template: str, position: int) -> str:
    parts = template.split("{}")
    holes = ["{n}" if place == position else "{}" for place in range(len(parts) - 1)]
    return parts[0] + "".join(hole + part for hole, part in zip(holes, parts[1:], strict=True))


_RULES: dict[str, Callable[[Link, Sequence[str]], list[Rule]]] = {
    "rename": _no_rules,
    "transpose": _transpose,
    "split": _split,
    "cat": _cat,
    "stack": _stack,
    "unstack": _unstack,
    "alias": _alias,
    "drop": _drop,
}
