"""Between two steps: the arguments of the next forward pass in the dialects of several releases, and the cache."""

from __future__ import annotations

import pytest
import torch

from shardload.transformers_shim.cache_utils import DynamicCache
from shardload.transformers_shim.configuration_utils import PretrainedConfig
from shardload.transformers_shim.generation._steps import cache_length, written_for
from tests.transformers_shim.generation.small_repos import (
    CACHE_OBJECT,
    KEEP,
    MODEL,
    PREPARE,
    likeliest,
    model,
    prompt,
)

TAKE = "self._extract_past_from_model_output(outputs{})"
STATED = TAKE.format(",\n            standardize_cache_format=standardize_cache_format")


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


@pytest.mark.parametrize(
    ("version", "release", "expected"),
    [
        ("4.45.0", (4, 45), True),
        ("4.44.9", (4, 45), False),
        ("4.9.0", (4, 10), False),
        ("5.0", (4, 45), True),
        ("4.46.0.dev0", (4, 46), True),
        (None, (4, 0), False),
        ("main", (4, 0), False),
    ],
)
def test_a_config_says_which_release_saved_it(version, release, expected):
    assert written_for(PretrainedConfig(transformers_version=version), release) is expected
    assert not written_for(object(), release)


def test_every_form_of_a_cache_has_a_length():
    key = torch.zeros(1, 2, 7, 4)
    cache = DynamicCache()
    assert cache_length(cache) == 0
    cache.update(key, key, 0)
    assert cache_length(cache) == cache_length(((key, key),)) == 7
    assert cache_length(None) == cache_length(()) == cache_length([None]) == 0


ANY = """
    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, **kwargs):
        {0}
        ids = input_ids if past_key_values is None else input_ids[:, -1:]
        return {{"input_ids": ids, "past_key_values": past_key_values, "use_cache": kwargs.pop("use_cache"), **kwargs}}
"""


def test_positions_go_only_to_code_that_knows_them(tmp_path):
    made = model(tmp_path, ANY.format("assert not any('position' in name for name in kwargs)"))
    assert made.generate(prompt(), max_new_tokens=9)[0].tolist() == likeliest(made, prompt(), 9)


@pytest.mark.parametrize("call", ["", "_delegate = super().prepare_inputs_for_generation"])
def test_positions_go_to_code_that_looks_them_up_or_asks_its_base(tmp_path, call):
    asked = "position = kwargs.pop('cache_position')"
    if call:
        asked = f"{call}; position = kwargs.pop(''.join(['cache', '_position']))"
    made = model(tmp_path, ANY.format(f"{asked}; assert position.tolist() == self.expected()") + EXPECTED)
    assert made.generate(prompt(), max_new_tokens=4)[0].tolist() == likeliest(made, prompt(), 4)


EXPECTED = """
    def expected(self):
        count = getattr(self, "count", 0)
        self.count = count + 1
        return list(range(5)) if count == 0 else [4 + count]
"""

BY_LENGTH = """
    def _get_initial_cache_position(self, seq_length, device, model_kwargs):
        assert seq_length == 5
        return super()._get_initial_cache_position(seq_length, device, model_kwargs)
"""


def test_first_positions_as_since_4_53(tmp_path):
    asked = "position = kwargs.pop('cache_position'); assert position.tolist() == self.expected()"
    made = model(tmp_path, ANY.format(asked) + EXPECTED + BY_LENGTH)
    assert made.generate(prompt(), max_new_tokens=4)[0].tolist() == likeliest(made, prompt(), 4)
    device = torch.device("cpu")
    cache = DynamicCache()
    cache.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2), 0)
    first = type(made).__mro__[1]._get_initial_cache_position
    assert first(made, 5, device, {"past_key_values": cache})["cache_position"].tolist() == [3, 4]
    assert first(made, 5, device, {"inputs_embeds": torch.ones(1, 2, 4)})["cache_position"].tolist() == [0, 1]
    assert first(made, prompt(), {"use_cache": False})["cache_position"] is None
