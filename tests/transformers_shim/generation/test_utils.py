"""Greedy search on models of several ages, each against an argmax loop without a cache."""

from __future__ import annotations

import logging

import pytest
import torch

from shardload.errors import UnsupportedError
from shardload.transformers_shim.generation import logits_process as ours
from shardload.transformers_shim.generation.utils import GenerationMixin, top_k_top_p_filtering
from tests.transformers_shim.generation.small_repos import PREPARE, likeliest, model, prompt


def test_greedy_tokens_are_the_likeliest(tmp_path):
    made = model(tmp_path)
    ids = made.generate(prompt(), max_new_tokens=24)
    assert ids[0].tolist() == likeliest(made, prompt(), 24)
    assert len(set(ids[0].tolist())) > 3


def test_the_cache_is_used_after_the_first_step(tmp_path):
    made = model(tmp_path)
    made.generate(prompt(), max_new_tokens=4)
    assert made.seen == [5, 1, 1, 1]


def test_without_a_cache_each_step_sees_all(tmp_path):
    made = model(tmp_path)
    ids = made.generate(prompt(), max_new_tokens=4, use_cache=False)
    assert made.seen == [5, 6, 7, 8]
    assert ids[0].tolist() == likeliest(made, prompt(), 4)


def test_embeddings_stand_for_the_prompt(tmp_path):
    made = model(tmp_path)
    embeds = made.embed(prompt())
    expected = likeliest(made, prompt(), 8)[5:]
    assert made.generate(inputs_embeds=embeds, max_new_tokens=8)[0].tolist() == expected
    # The cache is how the class knows that the first step is over.
    assert made.generate(inputs_embeds=embeds, max_new_tokens=8, use_cache=False)[0].tolist() == expected
    # A length counts the prompt that the embeddings are, though its ids are not returned.
    assert made.generate(inputs_embeds=embeds, max_length=13)[0].tolist() == expected


def test_embeddings_are_refused_by_a_class_that_does_not_take_them(tmp_path):
    made = model(
        tmp_path, PREPARE.replace("inputs_embeds=None, ", "").replace("inputs_embeds is not None", "0")
    )
    with pytest.raises(ValueError, match="inputs_embeds: TinyModel"):
        made.generate(inputs_embeds=made.embed(prompt()), max_new_tokens=2)


def test_a_start_token_where_no_prompt_is_given(tmp_path):
    made = model(tmp_path, bos_token_id=6)
    assert made.generate(max_new_tokens=3)[0].tolist() == likeliest(made, prompt(6), 3)
    with pytest.raises(ValueError, match="bos_token_id"):
        made.generate(max_new_tokens=3, bos_token_id=None)


def test_lengths(tmp_path, caplog):
    made = model(tmp_path)
    assert made.generate(prompt(), max_length=9).shape == (1, 9)
    assert made.generate(prompt(), max_length=9, max_new_tokens=2).shape == (1, 7)
    with caplog.at_level(logging.WARNING, logger="shardload"):
        assert made.generate(prompt()).shape == (1, 20)
        assert made.generate(prompt(), max_length=5).shape == (1, 6)
    assert "no max_new_tokens" in caplog.text
    assert "the prompt has 5 tokens and max_length is 5" in caplog.text


def test_no_gradients(tmp_path):
    output = model(tmp_path).generate(
        prompt(), max_new_tokens=2, return_dict_in_generate=True, output_scores=True
    )
    assert not output.scores[0].requires_grad


def test_inputs_twice(tmp_path):
    with pytest.raises(ValueError, match="given twice"):
        model(tmp_path).generate(prompt(), input_ids=prompt(), max_new_tokens=2)


def test_a_name_that_nothing_takes(tmp_path):
    with pytest.raises(ValueError, match="max_new_token,"):
        model(tmp_path).generate(prompt(), max_new_token=2)


def test_token_types_that_nothing_takes_say_nothing(tmp_path):
    made = model(tmp_path)
    encoded = {"input_ids": prompt(), "token_type_ids": torch.zeros(1, 5), "attention_mask": torch.ones(1, 5)}
    assert made.generate(**encoded, max_new_tokens=4)[0].tolist() == likeliest(made, prompt(), 4)


@pytest.mark.parametrize(
    ("keywords", "what"),
    [
        ({"num_beams": 4, "num_beam_groups": 2}, "group beam search"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search"),
        ({"assistant_model": "a model"}, "assisted generation"),
        ({"constraints": []}, "constrained beam search"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"synced_gpus": True}, "synced_gpus"),
        ({"negative_prompt_ids": 1}, "negative prompt"),
    ],
)
def test_what_is_not_done_is_declined_by_name(tmp_path, keywords, what):
    with pytest.raises(UnsupportedError, match=what):
        model(tmp_path).generate(prompt(), max_new_tokens=2, **keywords)


def test_a_class_without_a_head_does_not_generate(tmp_path):
    made = model(tmp_path, "")
    assert not made.can_generate()
    assert made.generation_config is None
    with pytest.raises(UnsupportedError, match="TinyModel does not generate"):
        made.generate(prompt())


def test_the_old_function_cuts_as_the_warpers_do():
    scores = torch.tensor([[2.0, -1.0, 1.5, 1.0]])
    cut = top_k_top_p_filtering(scores, top_k=3, top_p=0.71)
    assert torch.equal(cut, ours.TopPLogitsWarper(0.71)(None, ours.TopKLogitsWarper(3)(None, scores)))
    assert torch.equal(top_k_top_p_filtering(scores), scores)


def test_a_class_generates_where_it_prepares_its_inputs_or_has_the_mixin_itself():
    class Base(GenerationMixin):
        pass

    class Below(Base):
        pass

    class Prepares(Below):
        def prepare_inputs_for_generation(self, input_ids):
            return {"input_ids": input_ids}

    assert GenerationMixin.can_generate() is False
    assert Base.can_generate() is True
    assert Below.can_generate() is True  # a base of it has the mixin among its own bases
    assert Prepares.can_generate() is True


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("watermarking_config", {"bias": 2.5}),
        ("dola_layers", "high"),
        ("top_h", 0.4),
        ("token_healing", True),
        ("cache_implementation", "quantized"),
    ],
)
def test_a_setting_that_changes_the_tokens_is_never_passed_over(tmp_path, name, value):
    made = model(tmp_path)
    setattr(made.generation_config, name, value)  # as a settings file sets it
    with pytest.raises(UnsupportedError, match=name):
        made.generate(prompt(), max_new_tokens=2)
    setattr(made.generation_config, name, None)
    made.generate(prompt(), max_new_tokens=2)
