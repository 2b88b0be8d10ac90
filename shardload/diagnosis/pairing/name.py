"""Name: what the template of a family says by its words, and where two of them contradict each other."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from shardload.diagnosis.pairing.words import GENERIC_LEAVES, leaf_word, opposed, said_by, stated_by
from shardload.keys import no_weight

if TYPE_CHECKING:
    from shardload.diagnosis.pairing.key_family import KeyFamily

CONTENT = frozenset({
    "q", "k", "v", "o", "qkv", "gate", "up", "down", "embed", "head", "router", "experts", "shared", "conv", "sink",
    "scale", "position", "class", "patch", "lambda", "cross",
})  # fmt: skip
"""Words that say what a tensor is, not where it stands."""


class Name(NamedTuple):
    """What a template says: the words of its last module that has any, those before, and what it is of the module.

    `own` says that the last segment is a name of its own, such as `sinks` or `attention_sink_bias`; `stated` are all
    words that stand there, without those that are inferred.
    """

    telling: frozenset[str]
    before: frozenset[str]
    near: frozenset[str]
    generic: bool
    leaf: str
    own: bool
    stated: frozenset[str]


@lru_cache(maxsize=20_000)
def name_of(template: str) -> Name:
    """Return what a template says by its words."""
    segments = template.split(".")
    leaf = leaf_word(segments[-1])
    said = [frozenset(words) for words in said_by(segments)]
    if segments[-1] in GENERIC_LEAVES and len(segments) > 1:
        said.pop()
    said = [words for words, segment in zip(said, segments, strict=False) if segment != "{}"] or [frozenset()]
    spoken = [words for words in said if words]
    telling = spoken[-1] if spoken else frozenset()
    near = frozenset().union(*spoken[-2:-1])
    own = segments[-1] not in GENERIC_LEAVES
    inferred = {"pre"} if not any("pre" in stated_by(segment) for segment in segments) else set()
    before = frozenset().union(*spoken[:-1])
    return Name(telling, before, near, not said[-1], leaf, own, (before | telling) - inferred)


def contradicts(old: KeyFamily, new: KeyFamily) -> bool:
    """Whether names say that two families differ: a weight and a bias, its mask, an encoder's and a decoder's."""
    one, two = name_of(old.template), name_of(new.template)
    if no_weight(old.template) != no_weight(new.template):
        # The `v` of `attn.weight_v` is a word of its own where the other one is `v_proj.weight`.
        said = one.telling & two.telling & CONTENT
        if not said - one.before - two.before:
            return True
    same = one.leaf == two.leaf or (one.own and two.own and bool(one.telling & two.telling & CONTENT))
    return not same or opposed(one.stated, two.stated)
