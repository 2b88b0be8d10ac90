"""Penalties and biases on small scores, by their definitions."""

from __future__ import annotations

import pytest
import torch

from shardload.transformers_shim.generation import _penalties as ours
from tests.transformers_shim.generation.scores import IDS, kept, row


def test_repetition_is_penalised_once_a_token():
    scores = row(1.0, 4.0, -4.0, 1.0)
    assert ours.RepetitionPenaltyLogitsProcessor(2.0)(IDS, scores).tolist() == [[1.0, 2.0, -8.0, 1.0]]
    prompt = torch.tensor([[3, 2]])
    favoured = ours.EncoderRepetitionPenaltyLogitsProcessor(2.0, prompt)(IDS, scores)
    assert favoured.tolist() == [[1.0, 4.0, -2.0, 2.0]]


def test_biases_of_sequences():
    bias = ours.SequenceBiasLogitsProcessor({(0,): 1.0, (2, 1, 3): 2.0, (1, 3): 4.0, (0, 3): 8.0})
    assert bias(IDS, torch.zeros(1, 4)).tolist() == [[1.0, 0.0, 0.0, 6.0]]
    as_list = ours.SequenceBiasLogitsProcessor([[[0], 1.0], [[1, 3], 4.0]])
    assert as_list(IDS, torch.zeros(1, 4)).tolist() == [[1.0, 0.0, 0.0, 4.0]]
    with pytest.raises(ValueError, match="vocabulary of 3"):
        bias(IDS, torch.zeros(1, 3))


def test_bad_words_are_banned_but_not_the_end():
    words = ours.NoBadWordsLogitsProcessor([[0], [3], [1, 2]], eos_token_id=[3])
    assert kept(words(IDS, torch.zeros(1, 4))) == [1, 3]


def test_the_end_grows_likelier():
    grow = ours.ExponentialDecayLengthPenalty((1, 2.0), [0, 1], 2)
    # Two tokens past the start (2 + 1): the ends gain |score| * (2^2 - 1).
    assert grow(IDS, row(1.0, -1.0, 5.0)).tolist() == [[4.0, 2.0, 5.0]]
    assert grow(IDS[:, :3], row(1.0, -1.0, 5.0)).tolist() == [[1.0, -1.0, 5.0]]


def test_guidance():
    scores = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert ours.ClassifierFreeGuidanceLogitsProcessor(2.0)(IDS, scores).tolist() == [[-1.0, 4.0]]
    with pytest.raises(ValueError, match="two rows"):
        ours.ClassifierFreeGuidanceLogitsProcessor(2.0)(IDS, scores[:1])
