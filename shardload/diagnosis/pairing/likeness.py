"""Likeness: how alike two key families are by their names, given the pairs that were accepted before."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING

from shardload.diagnosis.pairing.words import said_by, words_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardload.diagnosis.pairing.key_family import KeyFamily

_NUMBER = re.compile(r"[0-9]{1,9}")

# Words that tell one tensor of a block from its neighbours.
_TELLING = frozenset({
    "q", "k", "v", "o", "qkv", "gate", "up", "down", "weight", "bias", "pre", "post", "norm", "embed",
    "head", "router", "experts", "shared", "conv", "sink", "scale", "position", "token", "class",
    "patch", "lambda", "cross", "vision", "text", "audio", "encoder", "decoder", "final",
})  # fmt: skip
_FIRST_OF_TWO = frozenset(
    {"up", "pre"}
)  # of two linear layers: `proj_in` and `proj_out`, `linear_1` and `linear_2`
_SECOND_OF_TWO = frozenset({"down", "post"})
_LEAVES = frozenset({"weight", "bias", "running_mean", "running_var", "num_batches_tracked"})
_OTHER_LEAVES = {"gamma": "weight", "beta": "bias", "kernel": "weight", "g": "weight", "b": "bias"}


@lru_cache(maxsize=20_000)
def _weighted(template: str, ranks: tuple[str, ...]) -> dict[str, float]:
    """Return the words of a template with their weights; words near the end weigh more."""
    segments = template.split(".")
    bag: dict[str, float] = defaultdict(float)
    leaf = segments[-1]
    depth = len(segments)
    said = said_by(segments)
    for place, segment in enumerate(segments):
        last = place == depth - 1
        if segment == "{}":
            continue
        if last and leaf in _LEAVES:
            bag["leaf:" + leaf] += 4
            continue
        if last and leaf in _OTHER_LEAVES and depth > 1:
            bag["leaf:" + _OTHER_LEAVES[leaf]] += 3
            continue
        nearness = 1.0 if depth - place <= 3 else 0.6
        for word in said[place]:
            bag[word] = max(bag[word], (3 if word in _TELLING else 1.5) * nearness)
    for rank in ranks:
        bag[rank] += 3
    return bag


class Likeness:
    """Scores pairs of families between 0 and about 1.5; learns from pairs that were accepted."""

    def __init__(self, stored: Iterable[KeyFamily], wanted: Iterable[KeyFamily]) -> None:
        self._ranks = {0: _sibling_ranks(stored), 1: _sibling_ranks(wanted)}
        self._parents: dict[str, Counter[str]] = defaultdict(Counter)
        self._segments: Counter[tuple[str, str]] = Counter()

    def rank_open(self, stored: Iterable[KeyFamily], wanted: Iterable[KeyFamily]) -> None:
        """Rank open families anew among those siblings that are open too: the others have their partners."""
        self._ranks[0] |= _sibling_ranks(stored)
        self._ranks[1] |= _sibling_ranks(wanted)

    def learn(self, old: str, new: str, weight: int = 1) -> None:
        """Record that a stored template is paired with a wanted one."""
        for before, after in _ancestors(old, new):
            self._parents[before][after] += weight
        first, second = old.split("."), new.split(".")
        while first and second and first[-1] == second[-1]:
            first.pop()
            second.pop()
        if first and second:
            self._segments[(first[-1], second[-1])] += weight

    def score(self, old: str, new: str) -> float:
        """Return how well two templates match: their words, and the pairs around them."""
        old, new = _plain(old), _plain(new)
        return self._words(old, new) + self._context(old, new)

    def names_agree(self, old: str, new: str) -> float:
        """Return how alike the words of two templates are, between 0 and 1."""
        return self._words(_plain(old), _plain(new))

    def same_rank(self, old: str, new: str) -> bool:
        """Whether both are the same of their siblings by number or order, such as the second of two norms."""
        one, two = self._ranks[0].get(_plain(old), ()), self._ranks[1].get(_plain(new), ())
        return bool(set(one) & set(two))

    def _words(self, old: str, new: str) -> float:
        one = _weighted(old, self._ranks[0].get(old, ()))
        two = _weighted(new, self._ranks[1].get(new, ()))
        common = sum(min(weight, two.get(word, 0)) for word, weight in one.items())
        dice = 2 * common / max(sum(one.values()) + sum(two.values()), 1)
        first, second = old.split("."), new.split(".")
        same = 0
        while same < min(len(first), len(second)) and first[-1 - same] == second[-1 - same]:
            same += 1
        if same == 1 and first[-1] in _LEAVES:
            same = 0
        return dice + 0.08 * min(same, 4)

    def _context(self, old: str, new: str) -> float:
        total = 0.0
        for (before, after), gain in zip(_ancestors(old, new), (0.2, 0.25, 0.2, 0.2), strict=False):
            votes = self._parents.get(before)
            if votes:
                share = votes[after] / max(votes.values())
                total += gain * (share or -1)
        first, second = old.split("."), new.split(".")
        while first and second and first[-1] == second[-1]:
            first.pop()
            second.pop()
        if first and second and self._segments[(first[-1], second[-1])]:
            total += 0.15
        return total


# The tensors of torch's weight_norm: their names as a parametrization, and before that.
_PARAMETRIZED = {
    ".parametrizations.weight.original0": ".weight_g",
    ".parametrizations.weight.original1": ".weight_v",
}


def _plain(template: str) -> str:
    """Return a template with a parametrized weight under its older name."""
    for new, old in _PARAMETRIZED.items():
        if template.endswith(new):
            return template.removesuffix(new) + old
    return template


@lru_cache(maxsize=20_000)
def _ancestors(old: str, new: str) -> tuple[tuple[str, str], ...]:
    """Return corresponding ancestors: the modules that hold the tensors, and what each number counts."""
    pairs = []
    first, second = old.split("."), new.split(".")
    pairs.append((".".join(first[:-1]), ".".join(second[:-1])))
    pairs.append((".".join(first[:-2]) + "|", ".".join(second[:-2]) + "|"))
    ones = [place for place, segment in enumerate(first) if segment == "{}"]
    twos = [place for place, segment in enumerate(second) if segment == "{}"]
    if len(ones) == len(twos):
        for one, two in reversed(list(zip(ones, twos, strict=True))):
            pair = (".".join(first[:one]) + ".{}", ".".join(second[:two]) + ".{}")
            if pair not in pairs:
                pairs.append(pair)
    return tuple(pairs)


def _sibling_ranks(families: Iterable[KeyFamily]) -> dict[str, tuple[str, ...]]:
    """Return the rank of each template among siblings that their names number or order.

    `norm1` and `norm2` are the first and the second of two norms, and so are `input_layernorm` and
    `post_attention_layernorm`.
    """
    groups: dict[tuple[str, str, str], dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for family in families:
        segments = family.segments
        if len(segments) < 2:
            continue
        parent, module, leaf = ".".join(segments[:-2]), segments[-2], segments[-1]
        if module == "{}":
            continue
        kind, order = _ordinal(module)
        if order is not None:
            groups[(parent, kind, leaf)][order].append(family.template)
    ranks: dict[str, tuple[str, ...]] = {}
    for (_, kind, _), members in groups.items():
        if len(members) < 2 or any(len(templates) > 1 for templates in members.values()):
            continue
        for place, order in enumerate(sorted(members)):
            ranks[members[order][0]] = (f"{kind}#{place + 1}of{len(members)}",)
    return ranks


def _ordinal(module: str) -> tuple[str, int | None]:
    """Return the kind of a numbered module, and its place among the modules of that kind."""
    words = words_of(module)
    # Names are untrusted: int() refuses thousands of digits, and digits such as "²".
    numbers = [int(word) for word in words if _NUMBER.fullmatch(word)]
    if "norm" in words:
        return "norm", _place_of_norm(set(words), numbers)
    if len(numbers) == 1:
        return "linear", numbers[0]
    if words and words[-1] in _FIRST_OF_TWO | _SECOND_OF_TWO:
        return "linear", 1 if words[-1] in _FIRST_OF_TWO else 2
    return "", None


def _place_of_norm(words: set[str], numbers: list[int]) -> int | None:
    """Return where in a block a norm stands: before attention, before or after the feed-forward part."""
    if words & {"q", "k", "v"}:
        return None
    if "attn" in words:
        return 20 if "post" in words else 10
    if "mlp" in words:
        return 30 if "post" in words else 20
    for word, place in (("pre", 10), ("post", 20), ("final", 20)):
        if word in words:
            return place
    return 10 * numbers[0] + 1 if len(numbers) == 1 else None
