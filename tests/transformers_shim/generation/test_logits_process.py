"""Processors and warpers: on small scores by their definitions, on random ones against transformers' classes."""

from __future__ import annotations

import math

import pytest
import torch

from shardload.transformers_shim.generation import logits_process as ours
from shardload.transformers_shim.generation.utils import top_k_top_p_filtering

INF = math.inf


def row(*values):
    return torch.tensor([values])


def logs(*chances):
    return torch.tensor([chances]).log()


def kept(scores):
    """Return which tokens of the first row are still possible."""
    return [n for n, score in enumerate(scores[0].tolist()) if score != -INF]


IDS = torch.tensor([[1, 2, 1, 2, 1]])
CHANCES = (0.4, 0.05, 0.3, 0.2, 0.05)


def test_temperature():
    assert ours.TemperatureLogitsWarper(0.5)(IDS, row(1.0, -2.0)).tolist() == [[2.0, -4.0]]


@pytest.mark.parametrize(
    ("warper", "expected"),
    [
        (ours.TopKLogitsWarper(2), [0, 2]),
        (ours.TopKLogitsWarper(99), [0, 1, 2, 3, 4]),
        (ours.TopKLogitsWarper(1, min_tokens_to_keep=3), [0, 2, 3]),
        (ours.TopPLogitsWarper(0.5), [0, 2]),
        (ours.TopPLogitsWarper(0.71), [0, 2, 3]),
        (ours.TopPLogitsWarper(0.0), [0]),
        (ours.TopPLogitsWarper(0.1, min_tokens_to_keep=2), [0, 2]),
        (ours.MinPLogitsWarper(0.7), [0, 2]),
        (ours.MinPLogitsWarper(0.9, min_tokens_to_keep=3), [0, 2, 3]),
        (ours.EpsilonLogitsWarper(0.1), [0, 2, 3]),
        (ours.EpsilonLogitsWarper(0.99), [0]),
        # sqrt(0.3) * exp(-entropy) = 0.14, which is less than 0.3.
        (ours.EtaLogitsWarper(0.3), [0, 2, 3]),
        # The entropy is 1.35 nats: the surprises nearest to it are those of 0.3 (1.2) and 0.2 (1.61).
        (ours.TypicalLogitsWarper(0.45), [2, 3]),
    ],
)
def test_what_is_cut(warper, expected):
    assert kept(warper(IDS, logs(*CHANCES))) == expected


def test_a_filter_value():
    cut = ours.TopKLogitsWarper(1, filter_value=-7.0)(IDS, row(3.0, 5.0))
    assert cut.tolist() == [[-7.0, 5.0]]


def test_repetition_is_penalised_once_a_token():
    scores = row(1.0, 4.0, -4.0, 1.0)
    assert ours.RepetitionPenaltyLogitsProcessor(2.0)(IDS, scores).tolist() == [[1.0, 2.0, -8.0, 1.0]]
    prompt = torch.tensor([[3, 2]])
    favoured = ours.EncoderRepetitionPenaltyLogitsProcessor(2.0, prompt)(IDS, scores)
    assert favoured.tolist() == [[1.0, 4.0, -2.0, 2.0]]


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


def test_the_end_grows_likelier():
    grow = ours.ExponentialDecayLengthPenalty((1, 2.0), [0, 1], 2)
    # Two tokens past the start (2 + 1): the ends gain |score| * (2^2 - 1).
    assert grow(IDS, row(1.0, -1.0, 5.0)).tolist() == [[4.0, 2.0, 5.0]]
    assert grow(IDS[:, :3], row(1.0, -1.0, 5.0)).tolist() == [[1.0, -1.0, 5.0]]


def test_normalised():
    assert torch.allclose(ours.LogitNormalization()(IDS, row(0.0, 0.0)).exp(), row(0.5, 0.5))


def test_guidance():
    scores = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert ours.ClassifierFreeGuidanceLogitsProcessor(2.0)(IDS, scores).tolist() == [[-1.0, 4.0]]
    with pytest.raises(ValueError, match="two rows"):
        ours.ClassifierFreeGuidanceLogitsProcessor(2.0)(IDS, scores[:1])


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


def test_the_old_function_cuts_as_the_warpers_do():
    scores = torch.tensor([[2.0, -1.0, 1.5, 1.0]])
    cut = top_k_top_p_filtering(scores, top_k=3, top_p=0.71)
    assert torch.equal(cut, ours.TopPLogitsWarper(0.71)(None, ours.TopKLogitsWarper(3)(None, scores)))
    assert torch.equal(top_k_top_p_filtering(scores), scores)
