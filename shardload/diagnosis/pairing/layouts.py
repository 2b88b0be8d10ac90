"""Orders and interleavings inside a tensor, which equal shapes can't show: reported, never guessed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.pairing.words import words_of

if TYPE_CHECKING:
    from shardload.diagnosis.pairing.key_family import KeyFamily

_LEAVES = frozenset({"weight", "bias"})

_NATIVE = ("wq", "wk")

HEADS = "whether the rows of q, k and v follow one another or are interleaved per head"
ORDER = "which of the equal parts is which"
ROTARY = "whether the rows of q and k are permuted for another rotary layout"
HALVES = (
    "whether the two halves of the fused tensor follow one another or are interleaved, and in which order"
)


def telling_segment(template: str) -> str:
    """Return the segment that names a tensor: `q_proj` of `q_proj.weight`, else the last one."""
    segments = template.split(".")
    named = [segment for segment in segments if segment != "{}"] or segments
    return named[-2] if named[-1] in _LEAVES and len(named) > 1 else named[-1]


def layout_doubt(old: KeyFamily, new: KeyFamily) -> str:
    """Return what the shapes of a renamed family leave open, or ""."""
    before, after = telling_segment(old.template), telling_segment(new.template)
    if before == after:
        return ""
    one, two = set(words_of(before)), set(words_of(after))
    if {"qkv"} & (one | two):
        return HEADS
    if {"gate", "up"} <= (one | two) and ({"gate", "up"} <= one or {"gate", "up"} <= two):
        return HALVES
    # The native layout of rotary models has wq and wk; q_proj and k_proj of other code are permuted against it.
    if before.startswith(_NATIVE) != after.startswith(_NATIVE):
        return ROTARY
    return ""
