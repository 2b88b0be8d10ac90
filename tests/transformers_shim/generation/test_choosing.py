"""Which processors, warpers and criteria the settings ask for, in which order."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from shardload.errors import UnsupportedError, UsageError
from shardload.transformers_shim.generation import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
)
from shardload.transformers_shim.generation._choosing import ChoosingMixin
from tests.transformers_shim.generation.small_repos import likeliest, model, prompt


@pytest.mark.parametrize("setting", [{"min_new_tokens": 6}, {"min_length": 11}])
def test_no_end_before_its_time(tmp_path, setting):
    made = model(tmp_path)
    first = likeliest(made, prompt(), 1)[-1]
    assert made.generate(prompt(), max_new_tokens=20, eos_token_id=first).shape == (1, 6)
    ids = made.generate(prompt(), max_new_tokens=20, eos_token_id=[first], **setting)[0].tolist()
    assert len(ids) >= 11
    assert first not in ids[5:11]


def test_no_ngram_twice(tmp_path):
    made = model(tmp_path)
    ids = made.generate(prompt(), max_new_tokens=40, no_repeat_ngram_size=2)[0].tolist()
    pairs = list(pairwise(ids))
    assert len(pairs) == len(set(pairs))
    plain = likeliest(made, prompt(), 40)
    assert len(set(pairwise(plain))) < len(plain) - 1


def test_words_that_must_not_be(tmp_path):
    made = model(tmp_path)
    plain = likeliest(made, prompt(), 6)
    ids = made.generate(prompt(), max_new_tokens=6, bad_words_ids=[[plain[5]], plain[4:8]])[0].tolist()
    assert plain[5] not in ids[5:]


def test_only_what_a_function_allows(tmp_path):
    made = model(tmp_path)
    asked = []

    def allowed(row, ids):
        asked.append((row, ids.tolist()))
        return [11, 12]

    ids = made.generate(prompt(), max_new_tokens=5, prefix_allowed_tokens_fn=allowed)[0].tolist()
    assert set(ids[5:]) <= {11, 12}
    assert asked[0] == (0, [3, 1, 4, 1, 5])


class Only(LogitsProcessor):
    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores):
        scores[:, self.token] = 1e4
        return scores


def test_a_processor_of_the_callers(tmp_path):
    made = model(tmp_path)
    for given in (LogitsProcessorList([Only(13)]), [Only(13)]):
        assert made.generate(prompt(), max_new_tokens=3, logits_processor=given)[0].tolist()[5:] == [13] * 3


def test_the_same_processor_twice(tmp_path):
    from shardload.transformers_shim.generation import MinLengthLogitsProcessor

    with pytest.raises(ValueError, match="MinLengthLogitsProcessor is in the list"):
        model(tmp_path).generate(
            prompt(),
            max_new_tokens=3,
            min_length=4,
            eos_token_id=2,
            logits_processor=[MinLengthLogitsProcessor(3, 2)],
        )


class Chooser(ChoosingMixin):
    config = SimpleNamespace(max_position_embeddings=64)


def names(items):
    return [type(item).__name__ for item in items]


EVERY = {
    "sequence_bias": {(1,): 1.0},
    "encoder_repetition_penalty": 1.1,
    "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 3,
    "bad_words_ids": [[3]],
    "min_length": 4,
    "min_new_tokens": 2,
    "forced_bos_token_id": 1,
    "forced_eos_token_id": 2,
    "remove_invalid_values": True,
    "exponential_decay_length_penalty": (3, 1.1),
    "suppress_tokens": [4],
    "begin_suppress_tokens": [5],
    "forced_decoder_ids": [[2, 7]],
    "renormalize_logits": True,
}


def test_processors_stand_in_the_order_of_the_releases():
    settings = GenerationConfig(**EVERY, eos_token_id=2, max_length=9)
    made = Chooser()._get_logits_processor(settings, 5, torch.tensor([[1, 2]]), lambda number, ids: [1])
    assert names(made) == [
        "SequenceBiasLogitsProcessor",
        "EncoderRepetitionPenaltyLogitsProcessor",
        "RepetitionPenaltyLogitsProcessor",
        "NoRepeatNGramLogitsProcessor",
        "EncoderNoRepeatNGramLogitsProcessor",
        "NoBadWordsLogitsProcessor",
        "MinLengthLogitsProcessor",
        "MinNewTokensLengthLogitsProcessor",
        "PrefixConstrainedLogitsProcessor",
        "ForcedBOSTokenLogitsProcessor",
        "ForcedEOSTokenLogitsProcessor",
        "InfNanRemoveLogitsProcessor",
        "ExponentialDecayLengthPenalty",
        "SuppressTokensLogitsProcessor",
        "SuppressTokensAtBeginLogitsProcessor",
        "ForceTokensLogitsProcessor",
        "LogitNormalization",
    ]
    assert names(Chooser()._get_logits_processor(GenerationConfig(), 5)) == []


@pytest.mark.parametrize(
    ("length", "forced_start", "begin"), [(5, None, 5), (1, 3, 2), (1, None, 1), (5, 3, 5)]
)
def test_the_beginning_is_after_a_token_that_is_forced(length, forced_start, begin):
    settings = GenerationConfig(begin_suppress_tokens=[1], forced_bos_token_id=forced_start)
    made = Chooser()._get_logits_processor(settings, length)
    assert made[-1].begin_index == begin


def test_without_an_end_no_end_is_forbidden_and_without_ids_no_prompt_is_read(caplog):
    settings = GenerationConfig(min_length=4, min_new_tokens=2, encoder_repetition_penalty=1.1)
    assert names(Chooser()._get_logits_processor(settings, 5, torch.ones(1, 2))) == []
    assert "encoder_repetition_penalty: without effect" in caplog.text
    with pytest.raises(UnsupportedError, match="guidance_scale"):
        Chooser()._get_logits_processor(GenerationConfig(guidance_scale=2.0), 5)


def test_warpers_stand_in_the_order_of_the_releases_and_at_their_defaults_do_nothing():
    every = {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.8}
    settings = GenerationConfig(**every, epsilon_cutoff=0.1, eta_cutoff=0.1, renormalize_logits=True)
    assert names(Chooser()._get_logits_warper(settings)) == [
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "MinPLogitsWarper",
        "TypicalLogitsWarper",
        "EpsilonLogitsWarper",
        "EtaLogitsWarper",
        "LogitNormalization",
    ]
    assert names(Chooser()._get_logits_warper(GenerationConfig(top_k=0))) == []
    # Beams need a token more than there are ends.
    beams = Chooser()._get_logits_warper(
        GenerationConfig(num_beams=2, top_p=0.9, top_k=0, eos_token_id=[1, 2])
    )
    assert beams[0].min_tokens_to_keep == 3


def test_criteria_stand_in_the_order_of_the_releases():
    settings = GenerationConfig(max_length=9, max_time=1.0, eos_token_id=2)
    mine = At()
    made = Chooser()._get_stopping_criteria(settings, [mine])
    assert names(made) == ["MaxLengthCriteria", "MaxTimeCriteria", "EosTokenCriteria", "At"]
    assert made[-1] is mine
    with pytest.raises(UsageError, match="stop_strings need the tokenizer"):
        Chooser()._get_stopping_criteria(GenerationConfig(stop_strings="."))


class At(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.shape[-1] == 3
