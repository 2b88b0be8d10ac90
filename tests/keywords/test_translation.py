"""Keywords of other loaders: synonyms are taken, what changes nothing is left out, a config judges settings."""

from __future__ import annotations

import pytest

from shardload import UsageError
from shardload.keywords import ConfigSettings, KeywordError
from shardload.keywords.table import ALIASES, NO_EFFECT
from shardload.keywords.translation import translation
from tests.keywords.entry_points import OWN, is_translated


def test_what_is_translated_is_all_that_is_neither_taken_nor_declined():
    for function, own in OWN.items():
        for keyword in ALIASES:
            if is_translated(function, keyword):
                made = translation({keyword: 1}, function, own)
                assert (made.keywords, made.settings, made.notes) == ({ALIASES[keyword]: 1}, {}, [])
    for keyword, (takers, values, why, _) in NO_EFFECT.items():
        assert takers <= OWN.keys()
        for function in takers:
            made = translation({keyword: (values or [None])[0]}, function, OWN[function])
            assert (made.keywords, made.notes) == ({}, [f"{keyword}= has no effect here: {why}"])


def test_a_setting_is_kept_where_a_config_can_judge_it():
    own, known = OWN["from_pretrained"], ConfigSettings.__optional_keys__
    made = translation({"num_layers": 3, "kv_groups": 2, "dtype": "auto"}, "from_pretrained", own, known)
    assert (made.keywords, made.settings) == ({"dtype": "auto"}, {"num_layers": 3, "kv_groups": 2})
    with pytest.raises(KeywordError) as caught:
        translation({"num_layers": 3}, "fill", OWN["fill"])
    assert isinstance(caught.value, UsageError)


def test_what_is_nearly_a_keyword_is_one_unless_configs_have_it():
    own, known = OWN["from_pretrained"], ConfigSettings.__optional_keys__
    assert translation({"quantization_bit": 4}, "from_pretrained", own, known).settings
    with pytest.raises(KeywordError) as caught:
        translation({"quantization_confg": 4}, "from_pretrained", own, known)
    assert caught.value.cure == "did you mean quantization_config=…?"


def test_a_misspelt_synonym_is_told_which_is_meant():
    with pytest.raises(KeywordError) as caught:
        translation({"torch_dtpye": "auto"}, "from_pretrained", OWN["from_pretrained"])
    assert caught.value.cure == "did you mean torch_dtype=…?"
