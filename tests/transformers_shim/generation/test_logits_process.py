"""Processors and warpers: on small scores by their definitions, on random ones against transformers' classes."""

from __future__ import annotations

import pytest
import torch

from shardload.transformers_shim.generation import logits_process as ours
from tests.transformers_shim.generation.scores import IDS, row


@pytest.mark.parametrize(
    "make",
    [
        lambda: ours.TemperatureLogitsWarper(0.0),
        lambda: ours.TopKLogitsWarper(0),
        lambda: ours.TopPLogitsWarper(1.5),
        lambda: ours.MinPLogitsWarper(-0.1),
        lambda: ours.TypicalLogitsWarper(1.0),
        lambda: ours.EpsilonLogitsWarper(0.0),
        lambda: ours.TopKLogitsWarper(3, min_tokens_to_keep=0),
        lambda: ours.RepetitionPenaltyLogitsProcessor(0.0),
        lambda: ours.NoRepeatNGramLogitsProcessor(0),
        lambda: ours.MinLengthLogitsProcessor(-1, 2),
        lambda: ours.NoBadWordsLogitsProcessor([], 2),
        lambda: ours.SequenceBiasLogitsProcessor({}),
        lambda: ours.ClassifierFreeGuidanceLogitsProcessor(1.0),
    ],
)
def test_settings_that_mean_nothing(make):
    with pytest.raises(ValueError):
        make()


def test_a_list_gives_more_to_those_that_ask():
    def plain(input_ids, scores):
        return scores + 1

    def asking(input_ids, scores, factor):
        return scores * factor

    both = ours.LogitsProcessorList([plain, asking])
    assert both(IDS, row(1.0), factor=5).tolist() == [[10.0]]


COMPARED = [
    ("TemperatureLogitsWarper", {"temperature": 0.7}),
    ("TopKLogitsWarper", {"top_k": 7}),
    ("TopPLogitsWarper", {"top_p": 0.85}),
    ("MinPLogitsWarper", {"min_p": 0.2}),
    ("TypicalLogitsWarper", {"mass": 0.6}),
    ("EpsilonLogitsWarper", {"epsilon": 0.03}),
    ("EtaLogitsWarper", {"epsilon": 0.05}),
    ("RepetitionPenaltyLogitsProcessor", {"penalty": 1.3}),
    ("NoRepeatNGramLogitsProcessor", {"ngram_size": 2}),
    ("SequenceBiasLogitsProcessor", {"sequence_bias": {(3,): 1.5, (2, 4): -4.0, (0, 1, 2): 9.0}}),
    ("NoBadWordsLogitsProcessor", {"bad_words_ids": [[3], [1, 4], [2]], "eos_token_id": 2}),
    ("MinLengthLogitsProcessor", {"min_length": 30, "eos_token_id": [2, 3]}),
    ("ForcedEOSTokenLogitsProcessor", {"max_length": 13, "eos_token_id": [3]}),
    ("SuppressTokensLogitsProcessor", {"suppress_tokens": [1, 2]}),
    ("LogitNormalization", {}),
]


@pytest.mark.parametrize(("name", "settings"), COMPARED)
def test_random_scores_as_in_transformers(name, settings):
    theirs = pytest.importorskip("transformers.generation.logits_process")
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        ids = torch.randint(0, 5, (3, 12), generator=generator)
        scores = 3 * torch.randn(3, 40, generator=generator)
        expected = getattr(theirs, name)(**settings)(ids, scores.clone())
        assert torch.equal(getattr(ours, name)(**settings)(ids, scores.clone()), expected)
