"""Beam search: against every sequence there is, and against transformers running the same code."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from shardload.errors import UnsupportedError
from shardload.transformers_shim.generation._beams import _candidates
from tests.transformers_shim.generation import encoder_decoder_repo, small_repos
from tests.transformers_shim.generation.small_repos import CACHE_OBJECT, KEEP, VOCABULARY, prompt

REORDER = """
    def _reorder_cache(self, past, beam_idx):
        return tuple(tuple(part.index_select(0, beam_idx) for part in layer) for layer in past)
"""
GENERATES = (
    ("class TinyModel(PreTrainedModel):", "class TinyModel(PreTrainedModel, GenerationMixin):"),
    ("from torch import nn", "from torch import nn\nfrom transformers import GenerationMixin"),
    ("self.seen = []", "self.seen = []\n        self.post_init()"),
)


def alone(folder: Any, base: str = "shim", **config: Any) -> Any:
    prepare = small_repos.PREPARE + REORDER
    return small_repos.model(folder, prepare, replace=GENERATES, remote_base=base, **config)


def with_encoder(folder: Any, base: str = "shim", **config: Any) -> Any:
    prepare = encoder_decoder_repo.PREPARE + REORDER
    return encoder_decoder_repo.model(folder, prepare, remote_base=base, **config)


def test_with_a_beam_for_every_token_the_best_of_all_sequences_is_found(tmp_path):
    made = alone(tmp_path)
    every = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=2)))
    whole = torch.cat([prompt().expand(len(every), -1), every], 1)
    with torch.no_grad():
        chances = made(whole).logits[:, 4:6].log_softmax(-1)
    sums = chances.gather(-1, every[..., None]).sum((1, 2))
    best = whole[sums.argsort(descending=True)[:5]]
    found = made.generate(prompt(), num_beams=VOCABULARY, num_return_sequences=5, max_new_tokens=2)
    assert torch.equal(found, best)
    greedy = made.generate(prompt(), max_new_tokens=2)
    assert sums.max() >= sums[(whole == greedy).all(1)].max()


CASES: tuple[dict[str, Any], ...] = (
    {"num_beams": 3},
    {"num_beams": 4, "num_return_sequences": 4},
    {"num_beams": 3, "eos_token_id": 4, "length_penalty": 0.5},
    {"num_beams": 3, "eos_token_id": 4, "early_stopping": True, "num_return_sequences": 2},
    {"num_beams": 3, "eos_token_id": 4, "early_stopping": "never", "length_penalty": 2.0},
    {"num_beams": 3, "eos_token_id": 4, "early_stopping": "never", "length_penalty": -0.5},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "eos_token_id": 9},
)


@pytest.mark.parametrize("settings", CASES, ids=lambda settings: "-".join(settings))
@pytest.mark.parametrize("kind", [alone, with_encoder])
def test_the_sequences_are_those_of_transformers(tmp_path, kind, settings):
    pytest.importorskip("transformers")
    batch, answers = torch.cat([prompt(), prompt(9, 2, 6, 5, 3)]), []
    for base, options in (
        ("shim", {}),
        ("shim", {"use_cache": False}),
        ("transformers", {"use_cache": False}),
    ):
        made = kind(tmp_path, base, pad_token_id=22)
        torch.manual_seed(3)
        answers.append(made.generate(batch, max_new_tokens=10, **settings, **options).tolist())
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("kind", [alone, with_encoder])
def test_drawn_beams_follow_the_seed(tmp_path, kind):
    made = kind(tmp_path)

    def drawn(seed: int, **options: Any) -> tuple[int, ...]:
        torch.manual_seed(seed)
        settings = {"num_beams": 2, "do_sample": True, "temperature": 3.0, "max_new_tokens": 10}
        return tuple(made.generate(prompt(), **settings, **options)[0].tolist())

    by_seed = [drawn(seed) for seed in range(8)]
    assert by_seed == [drawn(seed, use_cache=False) for seed in range(8)]
    assert len(set(by_seed)) > 1


def test_of_several_ends_the_first_is_written(tmp_path):
    made, options = alone(tmp_path), {"num_beams": 3, "max_new_tokens": 10}
    ended = made.generate(prompt(), eos_token_id=5, pad_token_id=22, **options)[0].tolist()
    assert ended[-1] == 5
    several = made.generate(prompt(), eos_token_id=[VOCABULARY - 1, 5], pad_token_id=22, **options)[
        0
    ].tolist()
    assert several == [*ended[:-1], VOCABULARY - 1]


def test_a_cache_object_is_reordered_by_itself(tmp_path):
    replace = (
        ("past = past_key_values or [None, None]", CACHE_OBJECT),
        ("past_key_values=cache if use_cache else None", "past_key_values=keep(past_key_values, cache)"),
        ("class Layer", KEEP),
    )
    made = small_repos.model(tmp_path / "object", replace=replace)
    found = made.generate(prompt(), num_beams=4, num_return_sequences=4, max_new_tokens=12)
    assert made.seen[:3] == [5, 1, 1]
    expected = alone(tmp_path / "tuple").generate(
        prompt(), num_beams=4, num_return_sequences=4, max_new_tokens=12, use_cache=False
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", [alone, with_encoder])
def test_scores_of_sequences_are_those_of_their_tokens(tmp_path, kind):
    made = kind(tmp_path)
    options = {"output_scores": True, "return_dict_in_generate": True, "output_attentions": True}
    output = made.generate(
        prompt(), num_beams=3, num_return_sequences=3, max_new_tokens=6, eos_token_id=4, **options
    )
    assert type(output).__name__.startswith("GenerateBeam")
    steps = made.compute_transition_scores(output.sequences, output.scores, output.beam_indices)
    lengths = (output.beam_indices >= 0).sum(-1)
    assert torch.allclose(steps.sum(-1) / lengths, output.sequences_scores, atol=1e-5)
    assert output.sequences_scores.tolist() == sorted(output.sequences_scores.tolist(), reverse=True)
    found = made.generate(prompt(), num_beams=3, max_new_tokens=6, eos_token_id=4)
    assert found[0].tolist() == output.sequences[0, : found.shape[1]].tolist()


def test_what_beam_search_can_not_do_is_said(tmp_path):
    made = small_repos.model(tmp_path)
    with pytest.raises(UnsupportedError, match="does not define _reorder_cache") as caught:
        made.generate(prompt(), num_beams=2)
    assert "use_cache=False" in caught.value.cure
    assert made.generate(prompt(), num_beams=2, use_cache=False).shape == (1, 20)
    with pytest.raises(ValueError, match="num_return_sequences=3 of num_beams=2"):
        made.generate(prompt(), num_beams=2, num_return_sequences=3)
    with pytest.raises(ValueError, match="a streamer needs num_beams=1"):
        made.generate(prompt(), num_beams=2, streamer=object())


@pytest.mark.parametrize(("ends", "count"), [(None, 4), (3, 4), ([1, 2, 3], 8)])
def test_there_are_enough_candidates_that_not_all_of_them_end(ends, count):
    scores = torch.randn(2 * 2, 5)
    best, tokens, beams = _candidates(scores, 2, ends, draw=False)
    assert best.shape == (2, count)
    for row in range(2):
        flat = scores[2 * row : 2 * row + 2].reshape(-1)
        order = flat.argsort(descending=True)[:count]
        assert torch.equal(best[row], flat[order])
        assert torch.equal(beams[row] * 5 + tokens[row], order)
