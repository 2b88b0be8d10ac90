"""Greedy search on models of several ages, each against an argmax loop without a cache."""

from __future__ import annotations

import logging

import pytest
import torch

from shardload.errors import UnsupportedError
from tests.transformers_shim.generation.small_repos import MODEL, PREPARE, likeliest, model, prompt


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


def test_a_cache_under_its_name_before_4_26(tmp_path):
    old = """
    def prepare_inputs_for_generation(self, input_ids, past=None, attention_mask=None, use_cache=None):
        return {"input_ids": input_ids if past is None else input_ids[:, -1:], "past_key_values": past,
                "use_cache": use_cache}
"""
    made = model(tmp_path, old)
    assert made.generate(prompt(), max_new_tokens=9)[0].tolist() == likeliest(made, prompt(), 9)
    assert made.seen[:3] == [5, 1, 1]


def test_a_config_of_a_later_release_never_hands_over_past(tmp_path):
    # That code takes `past` and would be wrong with one: those releases had renamed it, so it got none.
    old = """
    def prepare_inputs_for_generation(self, input_ids, past=None, attention_mask=None, **kwargs):
        assert past is None
        return {"input_ids": input_ids, "past_key_values": past}
"""
    made = model(tmp_path, old)
    made.config.transformers_version = "4.27.4"
    assert made.generate(prompt(), max_new_tokens=5)[0].tolist() == likeliest(made, prompt(), 5)
    assert made.seen[:3] == [5, 6, 7]


def test_a_cache_object_made_by_the_model(tmp_path):
    replace = (
        ("past = past_key_values or [None, None]", CACHE_OBJECT),
        ("past_key_values=cache if use_cache else None", "past_key_values=keep(past_key_values, cache)"),
        ("class Layer", KEEP),
    )
    made = model(tmp_path, replace=replace)
    output = made.generate(prompt(), max_new_tokens=9, return_dict_in_generate=True)
    assert made.seen[:3] == [5, 1, 1]
    assert output.past_key_values.get_seq_length() == 13
    assert output.sequences[0].tolist() == likeliest(made, prompt(), 9)


NEEDS_A_CACHE = (
    (
        "past = past_key_values or [None, None]",
        """if use_cache and past_key_values is None:
            raise ValueError("pass a cache object")
        past = list(past_key_values or []) or [None, None]""",
    ),
    (
        "past_key_values=cache if use_cache else None",
        "past_key_values=None if past_key_values is None else keep(past_key_values, cache)",
    ),
    ("config_class = TinyConfig", "config_class = TinyConfig\n    _supports_cache_class = True"),
)
COUNTS = """
    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, use_cache=None, **kwargs):
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        return {"input_ids": input_ids[:, seen:], "past_key_values": past_key_values, "use_cache": use_cache}
"""


def test_a_class_of_4_42_and_later_is_handed_its_cache(tmp_path):
    made = model(tmp_path, COUNTS, replace=(*NEEDS_A_CACHE, ("class Layer", KEEP)))
    with pytest.raises(ValueError, match="pass a cache object"):
        made.generate(prompt(), max_new_tokens=3)  # as in the releases before: no config says otherwise
    made.config.transformers_version = "4.46.3"
    made.seen.clear()
    output = made.generate(prompt(), max_new_tokens=9, return_dict_in_generate=True)
    assert made.seen[:3] == [5, 1, 1]
    assert output.past_key_values.get_seq_length() == 13
    cacheless = [made(output.sequences[:, :n], use_cache=False).logits[0, -1].argmax() for n in range(5, 14)]
    assert output.sequences[0, 5:].tolist() == [int(token) for token in cacheless]


def test_a_class_that_makes_a_kind_of_its_own_is_not(tmp_path):
    own = COUNTS.replace(
        "        seen", "        assert past_key_values is None or type(past_key_values) is Own\n        seen"
    ).replace('"past_key_values": past_key_values', '"past_key_values": past_key_values or Own()')
    kinds = KEEP.replace("class Layer", "class Own(DynamicCache): pass\n\nclass Layer")
    made = model(tmp_path, own, replace=(*NEEDS_A_CACHE, ("class Layer", kinds)))
    made.config.transformers_version = "4.46.3"
    made.generate(prompt(), max_new_tokens=9)
    assert made.seen[:3] == [5, 1, 1]


CACHE_OBJECT = """if past_key_values is None:
            past_key_values = DynamicCache()
        past = list(past_key_values) or [None, None]"""
KEEP = """from transformers.cache_utils import DynamicCache

def keep(cache, layers):
    length = layers[0][0].shape[2] - cache.get_seq_length()
    for number, (key, value) in enumerate(layers):
        cache.update(key[:, :, -length:], value[:, :, -length:], number)
    return cache

class Layer"""


KEEP_GIVEN = "past_key_values=None if past_key_values is None else keep(past_key_values, cache)"


def test_a_class_that_leaves_its_inputs_to_the_base(tmp_path):
    replace = (
        *(
            ("past = past_key_values or [None, None]", "past = list(past_key_values or ()) or [None, None]"),
            ("past_key_values=cache if use_cache else None", KEEP_GIVEN),
            ("class Layer", KEEP),
        ),
        ("class TinyModel(PreTrainedModel):", "class TinyModel(PreTrainedModel, GenerationMixin):"),
        ("from torch import nn", "from torch import nn\nfrom transformers import GenerationMixin"),
        ("config_class = TinyConfig", "config_class = TinyConfig\n    _supports_cache_class = True"),
    )
    made = model(tmp_path, "", replace=replace)
    ids = torch.tensor([[0, 0, 7, 8, 9], [3, 1, 4, 1, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    both = made.generate(ids, attention_mask=mask, max_new_tokens=8)
    assert made.seen[:3] == [5, 1, 1]
    assert both[0, 2:].tolist() == likeliest(made, prompt(7, 8, 9), 8)
    assert both[1].tolist() == likeliest(made, prompt(), 8)


TAKE = "self._extract_past_from_model_output(outputs{})"
STATED = TAKE.format(",\n            standardize_cache_format=standardize_cache_format")


@pytest.mark.parametrize(
    "call",
    [
        f"name, cache = {TAKE.format('')}\n        kwargs[name] = cache",
        f'kwargs["past_key_values"] = {STATED}',
        f"name, cache = {STATED}\n        kwargs[name] = cache",
        f'_, kwargs["past_key_values"] = {STATED}',
    ],
    ids=["since 4.42", "before", "4.42 and 4.43", "a mixture"],
)
def test_a_repos_own_update_of_the_keyword_arguments(tmp_path, call):
    own = f"""
    def _update_model_kwargs_for_generation(
        self, outputs, kwargs, is_encoder_decoder=False, standardize_cache_format=False
    ):
        {call}
        kwargs["attention_mask"] = torch.cat([kwargs["attention_mask"], torch.ones(1, 1)], 1)
        kwargs["steps"] = kwargs.get("steps", 0) + 1
        return kwargs
"""
    made = model(tmp_path, PREPARE + own)
    assert made.generate(prompt(), max_new_tokens=6)[0].tolist() == likeliest(made, prompt(), 6)
    assert made.seen[:3] == [5, 1, 1]


def test_a_forward_with_few_arguments(tmp_path):
    few = MODEL[: MODEL.index("    def forward(self, input_ids=None")] + (
        "    def forward(self, input_ids):\n"
        "        return CausalLMOutputWithPast(logits=self.head(self.embed(input_ids)))\n"
    )
    made = model(
        tmp_path,
        "    def prepare_inputs_for_generation(self, input_ids):\n        return {'input_ids': input_ids}\n",
        replace=((MODEL, few),),
    )
    assert made.generate(prompt(), max_new_tokens=6)[0].tolist() == likeliest(made, prompt(), 6)


@pytest.mark.parametrize("name", ["logits_to_keep", "num_logits_to_keep"])
def test_a_prompts_other_logits_are_not_made(tmp_path, name):
    replace = (
        ("class TinyModel(PreTrainedModel):", "class TinyModel(PreTrainedModel, GenerationMixin):"),
        ("from torch import nn", "from torch import nn\nfrom transformers import GenerationMixin"),
        ("return_dict=None):", f"return_dict=None, {name}=0):\n        self.kept = {name}"),
        ("self.head(x)", f"self.head(x[:, -{name}:])"),
    )
    made = model(tmp_path, "", replace=replace)
    assert made.generate(prompt(), max_new_tokens=6)[0].tolist() == likeliest(made, prompt(), 6)
    made.generate(prompt(), max_new_tokens=1)
    assert made.kept == 1


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
