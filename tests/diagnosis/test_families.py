"""The development half of the third split of the families: what the doctor reached on it must stay.

The held-out half is not run here; docs/doctor.md has its result.
"""

from __future__ import annotations

import pytest

from tests.diagnosis.halves import is_held_out_third

pytest.importorskip("transformers")

from tests.diagnosis import corpus
from tests.diagnosis.scoring import score


@pytest.fixture(scope="module")
def scores():
    pairs = (
        corpus.build(family)
        for family, package in corpus.families().items()
        if not is_held_out_third(package)
    )
    return [score(pair) for pair in pairs if pair is not None]


def test_there_are_many_families(scores):
    assert len(scores) >= 15


def test_ninety_five_of_a_hundred_keys_are_right(scores):
    assert sum(result.right for result in scores) >= 0.99 * sum(result.keys for result in scores)


def test_hardly_any_applied_rule_is_wrong(scores):
    wrong = [(result.family, result.wrong_keys[:3]) for result in scores if result.wrong]
    assert sum(result.wrong for result in scores) <= 0.001 * sum(result.applied for result in scores), wrong


def test_most_families_are_perfect(scores):
    missed = [(result.family, result.missed[:2]) for result in scores if not result.perfect]
    assert len(missed) <= 0.1 * len(scores), missed
