"""rename_rules: pairs of templates as few renames, with one rule for a subtree that moves as one."""

from __future__ import annotations

from collections import Counter, defaultdict
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, NamedTuple

from shardload.keymap import KeyMap, Rename
from shardload.keymap.mapped import renamed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Segments = tuple[str, ...]

_ASIDE = "renamed"  # prefix of names that wait until the name they take is free


class _Move(NamedTuple):
    """`before.{...}.tail` becomes `after.{...}.end`."""

    before: Segments
    tail: Segments
    after: Segments
    end: Segments

    def rule(self) -> Rename:
        return Rename(
            ".".join((*self.before, "{...}", *self.tail)), ".".join((*self.after, "{...}", *self.end))
        )


def rename_rules(pairs: Mapping[str, str], kept: Iterable[str], names: Mapping[str, str]) -> KeyMap:
    """Return renames that turn every old template into its new one, and leave `kept` templates alone.

    Templates that are in neither may be renamed along with their neighbours. `names` maps stored keys to the names
    that they must get: the rules are tried on them, and exact rules replace short ones that give other names.
    """
    changed = {old: new for old, new in pairs.items() if old != new}
    if not changed:
        return KeyMap()
    short = _short_rules(changed, (*kept, *(old for old, new in pairs.items() if old == new)))
    if _comes_true(short, names):
        return short
    exact = KeyMap(tuple(Rename(old, new) for old, new in changed.items()))
    if _comes_true(exact, names):
        return exact
    # Some new names are old ones: all names move aside first.
    return KeyMap(
        (
            *(Rename(old, f"{_ASIDE}.{new}") for old, new in changed.items()),
            Rename(f"{_ASIDE}.{{...}}", "{...}"),
        )
    )


def _comes_true(key_map: KeyMap, names: Mapping[str, str]) -> bool:
    rules = [rule for rule in key_map.rules if isinstance(rule, Rename)]
    return renamed(names, rules, [0] * len(rules)) == names


def _short_rules(changed: Mapping[str, str], kept: Iterable[str]) -> KeyMap:
    pairs = {tuple(old.split(".")): tuple(new.split(".")) for old, new in changed.items()}
    stays = {tuple(old.split(".")): tuple(old.split(".")) for old in kept}
    moves = _prefix_moves(pairs, stays)
    open_pairs = {old: new for old, new in pairs.items() if old not in moves}
    moves |= _middle_moves(open_pairs, {**stays, **pairs})
    rules: dict[Rename, None] = {}
    for old, new in pairs.items():
        move = moves.get(old)
        rules[move.rule() if move else Rename(".".join(old), ".".join(new))] = None
    # Rules for single names first: else a subtree's rule would rename them.
    ordered: list[Rename] = sorted(rules, key=_specific_first)
    return KeyMap(tuple(ordered))


def _specific_first(rule: Rename) -> tuple[bool, int]:
    return "{...}" in rule.source, -rule.source.count(".")


def _prefix_moves(
    pairs: Mapping[Segments, Segments], stays: Mapping[Segments, Segments]
) -> dict[Segments, _Move]:
    """Return the move of the largest subtree that moves as one, for each old template."""
    votes: Counter[tuple[Segments, Segments]] = Counter()
    below: Counter[Segments] = Counter()
    for old, new in (*pairs.items(), *stays.items()):
        for length in range(1, len(old) + 1):
            below[old[: len(old) - length]] += 1
        for length in range(1, _common_end(old, new) + 1):
            votes[(old[: len(old) - length], new[: len(new) - length])] += 1
    moves: dict[Segments, _Move] = {}
    for old, new in pairs.items():
        for length in range(_common_end(old, new), 0, -1):
            before, after = old[: len(old) - length], new[: len(new) - length]
            if (
                before != after
                and _numbers(before) == _numbers(after)
                and votes[(before, after)] == below[before]
            ):
                moves[old] = _Move(before, (), after, ())
                break
    single = Counter((move.before, move.after) for move in moves.values())
    return {
        old: move
        for old, move in moves.items()
        if single[(move.before, move.after)] > 1 or len(old) - len(move.before) > 1
    }


def _middle_moves(
    pairs: Mapping[Segments, Segments], everything: Mapping[Segments, Segments]
) -> dict[Segments, _Move]:
    """Return moves that change the first and the last segments of names and keep the middle."""
    found: dict[_Move, list[Segments]] = defaultdict(list)
    for old, new in pairs.items():
        block = SequenceMatcher(None, old, new, autojunk=False).find_longest_match()
        stop, end = block.a + block.size, block.b + block.size
        move = _Move(old[: block.a], old[stop:], new[: block.b], new[end:])
        if block.size > 1 and move.tail and _numbers(move.before) == _numbers(move.after):
            found[move].append(old)
    groups = {move: olds for move, olds in found.items() if len(olds) > 1}
    lengths = {(len(move.before), len(move.tail)) for move in groups}
    covered: dict[tuple[Segments, Segments], list[tuple[Segments, Segments]]] = defaultdict(list)
    for old, new in everything.items():
        for begin, end in lengths:
            if len(old) > begin + end:
                covered[old[:begin], old[-end:]].append((old, new))
    result: dict[Segments, _Move] = {}
    for move, olds in groups.items():
        if all(_moved(move, old) == new for old, new in covered[move.before, move.tail]):
            result |= dict.fromkeys(olds, move)
    return result


def _moved(move: _Move, old: Segments) -> Segments:
    return (*move.after, *old[len(move.before) : len(old) - len(move.tail)], *move.end)


def _common_end(old: Sequence[str], new: Sequence[str]) -> int:
    length = 0
    while length < min(len(old), len(new)) and old[-1 - length] == new[-1 - length]:
        length += 1
    return length


def _numbers(segments: Segments) -> int:
    """Return how many layer numbers a name has, shifted ones (`{-1}`) too."""
    return sum(segment.startswith("{") for segment in segments)
