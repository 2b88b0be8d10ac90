"""Two explanations that fit equally well are both shown, and neither is applied."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from shardload.diagnosis import diagnose
from shardload.diagnosis.ambiguous import AmbiguousRule
from shardload.diagnosis.whole_cure import NO_CURE
from tests.diagnosis.headers import case_of
from tests.diagnosis.key_sets import key_set
from tests.diagnosis.many_names import MANY, names

if TYPE_CHECKING:
    from shardload.diagnosis.finding import Case

NONSENSE = "zor mip fal quo ner tib gex lun wod pra hix sut".split()
TWINS = [
    ("student", "teacher"), ("model", "ema_model"), ("encoder_q", "encoder_k"), ("net_a", "net_b"),
    ("online", "target"), ("generator", "generator_ema"), ("first.backbone", "second.backbone"),
]  # fmt: skip


def base(draw: random.Random) -> dict[str, tuple[int, ...]]:
    return dict(key_set(draw.choice(["decoder", "two towers", "experts"]), draw.randint(1, 2))[0])


def two_sets(draw: random.Random) -> tuple[Case, set[str]]:
    """Two whole sets of the model's tensors are stored, in either order."""
    wanted = base(draw)
    names = list(draw.choice(TWINS))
    draw.shuffle(names)
    stored = {f"{name}.{key}": shape for name in names for key, shape in wanted.items()}
    return case_of(stored, wanted), set(stored)


def two_places(draw: random.Random) -> tuple[Case, set[str]]:
    """The model has two sets of places, and one set is stored."""
    stored = base(draw)
    wanted = {f"{name}.{key}": shape for name in draw.choice(TWINS) for key, shape in stored.items()}
    return case_of(stored, wanted), set(stored)


def two_tensors(draw: random.Random) -> tuple[Case, set[str]]:
    """Beside a model that fits, two tensors of one shape have names without a meaning on both sides."""
    shared = base(draw)
    shape = draw.choice([(7, 11), (5,), (3, 4, 5)])
    names = draw.sample(NONSENSE, 4)
    leaf = draw.choice(["weight", "bias", "kernel"])
    stored = shared | {f"{name}.{leaf}": shape for name in names[:2]}
    wanted = shared | {f"{name}.{leaf}": shape for name in names[2:]}
    return case_of(stored, wanted), {f"{name}.{leaf}" for name in names[:2]}


def two_in_each_layer(draw: random.Random) -> tuple[Case, set[str]]:
    """The same in each layer of a list."""
    shared, layers = base(draw), draw.randint(2, 4)
    names = draw.sample(NONSENSE, 4)
    shape = draw.choice([(6, 6), (9, 4)])

    def of(side: list[str]) -> dict[str, tuple[int, ...]]:
        return {f"tower.{n}.{name}.weight": shape for n in range(layers) for name in side}

    return case_of(shared | of(names[:2]), shared | of(names[2:])), set(of(names[:2]))


KINDS = [two_sets, two_places, two_tensors, two_in_each_layer]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_equal_explanations_are_called_ambiguous(make):
    """15 of each of four kinds, or as many as are asked for: `make fuzz` takes 125."""
    missed = []
    for seed in range(int(os.environ.get("SHARDLOAD_AMBIGUOUS", "15"))):
        case, doubtful = make(random.Random(f"{make.__name__} {seed}"))
        findings = diagnose(case)
        named = any(finding.code == "E-AMBIGUOUS" for finding in findings)
        moved = {key for key in doubtful if case.solution.key_map.apply(key) != key}
        if not named or moved:
            missed.append((seed, [finding.code for finding in findings], sorted(moved)[:3]))
    assert missed == []


def test_the_choices_are_shown_with_what_takes_each():
    case, _ = two_sets(random.Random(0))
    (finding,) = AmbiguousRule().examine(case)
    assert len(finding.cure.parts) == 2
    assert all({"key_map", "allow_unexpected"} == part.keywords.keys() for part in finding.cure.parts)


def test_more_names_than_are_compared_have_no_cure():
    found = diagnose(case_of(*MANY["an unknown rule"](300)))
    finding = next(finding for finding in found if finding.code == "E-AMBIGUOUS")
    assert "300 names" in finding.cause
    assert NO_CURE in finding.cure
    assert not any(finding.key_map for finding in found)


@pytest.mark.parametrize("layers", [(1, 1), (9, 8), (8, 9)])
def test_names_of_both_sides_are_not_ambiguous_whatever_their_sizes(layers):
    """More of them than are all compared; a list of at most eight parts is taken apart on its side only."""

    def heads(labels: int, count: int) -> dict[str, tuple[int, ...]]:
        own = {
            f"{name}.{n}.weight": (labels + place % 7, 32)
            for place, name in enumerate(names(1600 // count))
            for n in range(count)
        }
        return {**own, "classifier.weight": (labels, 32)}

    stored, wanted = (heads(labels, count) for labels, count in zip((11, 13), layers, strict=True))
    case = case_of(stored, wanted, config={"num_labels": 13, "num_layers": layers[1]})
    codes = {finding.code for finding in diagnose(case)}
    assert "E-CONFIG" in codes
    assert "E-AMBIGUOUS" not in codes
