"""Keys as templates: `layers.0.mlp.weight` … `layers.27.mlp.weight` is one line, with the exact indices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

Indices = tuple[int, ...]

STATISTICS = frozenset({
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "acc_delta", "grad", "grads",
    "gradient", "gradients", "fisher", "delta", "deltas",
})  # fmt: skip
"""Segments of what is computed about weights: an optimizer's numbers, gradients, differences. The shapes are theirs."""
_PART = re.compile(
    r"(?:^|\.)(?:parametrizations\.\w+\.(?P<new>original\d?|.+)"
    r"|weight_(?P<old>g|v|u|orig|mask|grad|delta|mu|rho|sigma|mean|var|sq_mean)|bias_(?P<bias>orig|mask|grad)"
    r"|(?P<log>log)_weight)$"
)
_AS_NEW = {"g": "original0", "v": "original1", "orig": "original"}


def split_key(key: str) -> tuple[str, Indices]:
    """Return the key with `{}` in place of every segment that is a number, and those numbers in order.

    `split_key("h.3.experts.0.w")` is `("h.{}.experts.{}.w", (3, 0))`. A number that would not print back the same
    ("007") or has ten digits or more is part of the name. A key that holds `{}` itself is returned as it is.
    """
    if "{}" in key:
        return key, ()  # its own braces would be taken for the template's
    segments = key.split(".")
    indices = []
    # A loop takes less than half the time of a regular expression; for 90,000 tensors that is a tenth of `inspect`.
    for place, segment in enumerate(segments):
        if (
            segment.isdigit()
            and segment.isascii()
            and len(segment) < 10
            and (segment[0] != "0" or segment == "0")
        ):
            indices.append(int(segment))
            segments[place] = "{}"
    return (".".join(segments), tuple(indices)) if indices else (key, ())


@lru_cache(maxsize=20_000)
def no_weight(name: str) -> str:
    """Return what says that a key or template is no weight, but computed of one or a part of one; "" for nothing.

    `no_weight("fc.weight_mask")` is "mask", `no_weight("exp_avg.fc.weight")` "exp_avg". The old and the new names of
    torch's weight norm are one: "original0" and "original1".
    """
    found = _PART.search(name)
    if found is not None:
        part = next(text for text in found.groups() if text)
        return _AS_NEW.get(part, part)
    return next((segment for segment in name.split(".") if segment.lower() in STATISTICS), "")


@dataclass(frozen=True)
class KeyGroup:
    """Keys of one template that share a label; `pattern` names exactly these keys."""

    pattern: str
    label: Hashable
    keys: tuple[str, ...]


def group_keys(labels: Mapping[str, Hashable]) -> list[KeyGroup]:
    """Collapse keys into patterns with exact index ranges, in the order in which they first appear.

    `labels` maps each key to what must be equal within a group (a shape, a dtype, a shard; None when nothing).
    A pattern such as `layers.{0-2,5}.experts.{0-7}.w` always means the full product of its ranges: where the
    indices are no product, several patterns are returned.
    """
    families: dict[tuple[str, Hashable], dict[Indices, str]] = {}
    for key, label in labels.items():
        template, indices = split_key(key)
        families.setdefault((template, label), {})[indices] = key
    groups: list[KeyGroup] = []
    for (template, label), members in families.items():
        for product in _products(sorted(members)):
            keys = tuple(members[indices] for indices in _expand(product))
            groups.append(KeyGroup(_fill(template, product), label, keys))
    return groups


def collapse(keys: Iterable[str]) -> list[str]:
    """Return the patterns of `group_keys` for keys without labels."""
    return [group.pattern for group in group_keys(dict.fromkeys(keys))]


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers as exact ranges, `{0-27}` or `{0-11,40}`; a single number without braces."""
    ordered = sorted(set(numbers))
    if len(ordered) == 1:
        return str(ordered[0])
    runs: list[list[int]] = []
    for number in ordered:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "{" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) + "}"


def nearest(key: str, keys: Iterable[str], most: int = 3) -> list[str]:
    """Return the keys that are most like `key`, at most one of each template, the most similar first.

    Templates are compared, so that a thousand layers cost one comparison (difflib's ratio, 0.6 at least); of a
    template's keys the one whose numbers are nearest is returned.
    """
    from difflib import get_close_matches

    template, indices = split_key(key)
    members: dict[str, dict[Indices, str]] = {}
    for other in keys:
        family, numbers = split_key(other)
        members.setdefault(family, {})[numbers] = other

    def distance(numbers: Indices) -> tuple[int, ...]:
        return tuple(abs(ours - theirs) for ours, theirs in zip(indices, numbers, strict=False))

    families = get_close_matches(template, members, n=most, cutoff=0.6)
    return [members[family][min(members[family], key=distance)] for family in families]


Product = tuple[tuple[int, ...], ...]
"""A set of index tuples that is the product of one tuple of numbers a position."""


def _products(members: Sequence[Indices]) -> list[Product]:
    """Return disjoint products that cover `members` (sorted, distinct)."""
    if not members or not members[0]:
        return [()] if members else []
    tails: dict[int, list[Indices]] = {}
    for first, *rest in members:
        tails.setdefault(first, []).append(tuple(rest))
    # First indices with the same set of tails belong to one product.
    sharing: dict[tuple[Indices, ...], list[int]] = {}
    for first, rest_of in tails.items():
        sharing.setdefault(tuple(rest_of), []).append(first)
    return [
        (tuple(firsts), *product) for rest_of, firsts in sharing.items() for product in _products(rest_of)
    ]


def _expand(product: Product) -> Iterable[Indices]:
    if not product:
        yield ()
        return
    for first in product[0]:
        for rest in _expand(product[1:]):
            yield (first, *rest)


def _fill(template: str, product: Product) -> str:
    parts = template.split("{}") if product else [template]
    text = parts[0]
    for numbers, part in zip(product, parts[1:], strict=True):
        text += ranges(numbers) + part
    return text
