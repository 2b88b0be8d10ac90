"""What is forbidden and what is forced, on small scores."""

from __future__ import annotations

import math

import pytest
import torch

from shardload.transformers_shim.generation import _limits as ours
from tests.transformers_shim.generation.scores import IDS, INF, kept, row


@pytest.mark.parametrize(
    ("size", "left"), [(1, [0, 3]), (2, [0, 1, 3]), (3, [0, 1, 3]), (4, [0, 1, 3]), (5, [0, 1, 2, 3])]
)
def test_ngrams(size, left):
    assert kept(ours.NoRepeatNGramLogitsProcessor(size)(IDS, torch.zeros(1, 4))) == left


def test_ngrams_of_the_prompt():
    prompts = torch.tensor([[9, 1, 0], [2, 1, 3]])
    ids = torch.tensor([[5, 1], [5, 1], [5, 1], [5, 1]])
    scores = ours.EncoderNoRepeatNGramLogitsProcessor(2, prompts)(ids, torch.zeros(4, 4))
    assert [kept(scores[n : n + 1]) for n in range(4)] == [[1, 2, 3], [1, 2, 3], [0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    ("processor", "left"),
    [
        (ours.MinLengthLogitsProcessor(6, [0, 2]), [1, 3]),
        (ours.MinLengthLogitsProcessor(5, [0, 2]), [0, 1, 2, 3]),
        (ours.MinNewTokensLengthLogitsProcessor(4, 2, torch.tensor([3])), [0, 1, 2]),
        (ours.MinNewTokensLengthLogitsProcessor(4, 1, 3), [0, 1, 2, 3]),
        (ours.ForcedEOSTokenLogitsProcessor(6, [2]), [2]),
        (ours.ForcedEOSTokenLogitsProcessor(7, [2]), [0, 1, 2, 3]),
        (ours.ForcedBOSTokenLogitsProcessor(2), [0, 1, 2, 3]),
        (ours.ForceTokensLogitsProcessor([[5, 1], [6, 2]]), [1]),
        (ours.SuppressTokensLogitsProcessor([1, 3]), [0, 2]),
        (ours.SuppressTokensAtBeginLogitsProcessor([1], 5), [0, 2, 3]),
        (ours.SuppressTokensAtBeginLogitsProcessor([1], 4), [0, 1, 2, 3]),
        (ours.PrefixConstrainedLogitsProcessor(lambda number, ids: [number, int(ids[-1])], 1), [0, 1]),
    ],
)
def test_what_is_forbidden_or_forced(processor, left):
    assert kept(processor(IDS, torch.zeros(1, 4))) == left


def test_nothing_allowed():
    with pytest.raises(ValueError, match="no token for prompt 0"):
        ours.PrefixConstrainedLogitsProcessor(lambda number, ids: [], 1)(IDS, torch.zeros(1, 4))


def test_the_first_token_is_forced():
    assert kept(ours.ForcedBOSTokenLogitsProcessor(2)(torch.tensor([[0]]), torch.zeros(1, 4))) == [2]


def test_what_is_not_finite():
    clean = ours.InfNanRemoveLogitsProcessor()(IDS, row(math.nan, INF, -INF, 1.5))
    top = torch.finfo(torch.float32).max
    assert clean.tolist() == [[0.0, top, -top, 1.5]]
