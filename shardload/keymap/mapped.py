"""The result of a key map on a checkpoint's headers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardload.keymap.drop import Drop
from shardload.keymap.rename import Rename
from shardload.keymap.rule import refuse_clashes
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from shardload.keymap.derived import Derived
    from shardload.keymap.rule import Rule
    from shardload.tensor_ref import Span


@dataclass(frozen=True)
class MappedHeaders:
    """Tensors by the model's names, and what happened to each stored name.

    `dropped` are stored names of which no tensor holds anything any more. `unchanged` are stored names that no rule
    took. `claimed` says for each rule how many names it took.
    """

    tensors: dict[str, Derived]
    dropped: tuple[str, ...]
    unchanged: tuple[str, ...]
    claimed: tuple[int, ...]


def renamed(keys: Iterable[str], rules: Sequence[Rename | Drop], claimed: list[int]) -> dict[str, str | None]:
    """Return {old: new or None} after a run of renames and drops; the names that each rule took are added to `claimed`.

    Two keys may have the same name between two rules, if not at the end. Rules for single keys are looked up in a
    table, so thousands of them cost no more than one.
    """
    run = _Run(rules)
    if not run.literal:
        return run.apply_all(keys, claimed)
    return {key: run.apply(key, claimed) for key in keys}


def refuse_meeting(mapped: dict[str, str | None]) -> None:
    """Raise UsageError when two keys get the same name."""
    owner: dict[str, str] = {}
    clashes = []
    for old, new in mapped.items():
        if new is not None and owner.setdefault(new, old) != old:
            clashes.append(f"{owner[new]} and {old} both become {new}")
    refuse_clashes(clashes)


class _Run:
    """A run of renames and drops, applied to one key at a time."""

    def __init__(self, rules: Sequence[Rename | Drop]) -> None:
        self._rules = rules
        self.literal: dict[str, list[int]] = {}  # the rules for single keys
        # With what a key begins and ends: most rules are passed over by that, without a call.
        self._others: list[tuple[int, str, str, Callable[[str], str | None]]] = []
        for place, rule in enumerate(rules):
            one = rule.only_key
            if one is not None:
                self.literal.setdefault(one, []).append(place)
            else:
                self._others.append((place, *rule.ends(), rule.apply))

    def apply_all(self, keys: Iterable[str], claimed: list[int]) -> dict[str, str | None]:
        """Return what `apply` does of all keys, in less than half the time: without rules for single keys."""
        made: dict[str, str | None] = {}
        for key in keys:
            current: str | None = key
            # The ends differ more often than the beginnings do.
            for other, begin, end, change in self._others:
                if current.endswith(end) and current.startswith(begin):  # type: ignore[union-attr]
                    new = change(current)  # type: ignore[arg-type]
                    if new != current:
                        claimed[other] += 1
                        current = new
                        if new is None:
                            break
            made[key] = current
        return made

    def apply(self, key: str, claimed: list[int]) -> str | None:
        """Return the name of a key after all rules, or None where it is dropped."""
        current: str | None = key
        place = self._next(key, -1)
        for other, begin, end, change in self._others:
            while current is not None and place < other:
                current, place = self._literally(current, place, claimed)
            if current is None:
                return None
            if current.startswith(begin) and current.endswith(end) and (new := change(current)) != current:
                claimed[other] += 1
                if new is None:
                    return None
                current, place = new, self._next(new, other)
        while current is not None and place < len(self._rules):
            current, place = self._literally(current, place, claimed)
        return current

    def _next(self, key: str, after: int) -> int:
        """Return the place of the next rule for this one key."""
        places = self.literal.get(key)
        end = len(self._rules)
        return next((place for place in places if place > after), end) if places else end

    def _literally(self, key: str, place: int, claimed: list[int]) -> tuple[str | None, int]:
        claimed[place] += 1
        new = self._rules[place].apply(key)
        return new, self._next(new, place) if new is not None else len(self._rules)


def second_views(rules: Iterable[Rule], tensors: Mapping[str, Derived]) -> set[str]:
    """Return the names of tensors whose bytes an earlier tensor views already; an alias makes such tensors.

    Spans are compared, so parts that interlace without overlapping, as columns do, count as well.
    """
    spans: dict[str, list[Span]] = {}
    doubled: set[str] = set()
    if not any(rule.op == "alias" for rule in rules):
        return doubled
    for name, tensor in tensors.items():
        if isinstance(tensor, TensorRef):
            met = spans.setdefault(tensor.name, [])
            if any(tensor.span.start < other.stop and other.start < tensor.span.stop for other in met):
                doubled.add(name)
            met.append(tensor.span)
    return doubled


def is_name_rule(rule: Rule) -> bool:
    """Whether a rule works on one name at a time, without its tensor."""
    return isinstance(rule, (Rename, Drop))
