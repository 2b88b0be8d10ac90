"""A thousand damaged checkpoints: cured, or called open; never cured wrongly."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
import torch

from tests.diagnosis.damage import damaged
from tests.diagnosis.scoring import case_of_state, realised

COUNT = 1000
PARTS = 10


def doubtful(case):
    """Return the keys of the model that only links with an unproven layout fill."""
    return {
        key
        for link in case.solution.board.links
        if link.unproven
        for family in link.wanted
        for key in family.names
    }


def outcome(seed):
    """Return what became of one damaged checkpoint: counts, and keys that were cured wrongly."""
    wanted, state, classes, done = damaged(Random(seed))
    case = case_of_state(state, wanted, classes)
    blob = torch.cat([value.flatten() for value in state.values()])
    table = case.solution.key_map.map_headers(dict(case.stored)).tensors
    unproven = doubtful(case)
    counts: Counter[str] = Counter()
    wrong = []
    for key, value in wanted.items():
        made = table.get(key)
        if made is None or made.shape != value.shape:
            counts["open"] += 1
        elif torch.equal(realised(made, blob), value):
            counts["right"] += 1
        elif key in unproven:
            counts["unproven"] += 1
        else:
            wrong.append(key)
    return counts, wrong, done


@pytest.mark.parametrize("part", range(PARTS))
def test_no_key_is_cured_wrongly(part):
    total: Counter[str] = Counter()
    for seed in range(part, COUNT, PARTS):
        counts, wrong, done = outcome(seed)
        assert not wrong, (seed, done, wrong[:3])
        total += counts
    assert total["right"] > 0.95 * sum(total.values()), total
