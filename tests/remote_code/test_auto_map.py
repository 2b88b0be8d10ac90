from __future__ import annotations

import pytest

from shardload.errors import CorruptError, UnsafeError, UsageError
from shardload.remote_code.auto_map import ClassRef, choose_model, entries, model_entries, parse_reference


def test_reference_of_module_and_class():
    assert parse_reference("modeling_x.Model") == ClassRef("modeling_x", "Model")


def test_reference_into_a_package():
    assert parse_reference("sub.modeling_x.Model") == ClassRef("sub.modeling_x", "Model")


def test_reference_to_another_repo():
    assert parse_reference("org/na.me-6b--modeling_x.Model") == ClassRef(
        "modeling_x", "Model", "org/na.me-6b"
    )


@pytest.mark.parametrize(
    "text",
    [
        "Model",
        "../evil.Model",
        "..evil.Model",
        "/etc/evil.Model",
        "a/b.Model",
        "modeling_x.",
        ".Model",
        "a..Model",
        "modeling x.Model",
        "org/../x--m.Model",
        "org/a..b--m.Model",
        "--m.Model",
        "just-a-name--m.Model",
        "m.Model()",
        "m\\x.Model",
        "m\0.Model",
    ],
)
def test_names_that_are_paths_or_expressions_are_refused(text):
    with pytest.raises(UnsafeError, match="auto_map names"):
        parse_reference(text)


def test_causal_lm_comes_first_then_seq2seq_then_auto_model_then_file_order():
    auto_map = {
        "AutoConfig": "c.C",
        "AutoModelForTokenClassification": "m.Tok",
        "AutoModel": "m.Base",
        "AutoModelForSequenceClassification": "m.Seq",
        "AutoModelForSeq2SeqLM": "m.S2S",
        "AutoModelForCausalLM": "m.LM",
        "AutoTokenizer": ["t.T", None],
    }
    assert list(model_entries({"auto_map": auto_map})) == [
        "AutoModelForCausalLM",
        "AutoModelForSeq2SeqLM",
        "AutoModel",
        "AutoModelForTokenClassification",
        "AutoModelForSequenceClassification",
    ]
    assert choose_model({"auto_map": auto_map}) == ("AutoModelForCausalLM", ClassRef("m", "LM"))


def test_auto_map_wins_over_architectures():
    config = {"architectures": ["WrongModel"], "auto_map": {"AutoModel": "m.Right"}}
    assert choose_model(config) == ("AutoModel", ClassRef("m", "Right"))


def test_auto_class_picks_an_entry():
    config = {"auto_map": {"AutoModel": "m.A", "AutoModelForCausalLM": "m.B"}}
    assert choose_model(config, "AutoModel") == ("AutoModel", ClassRef("m", "A"))


def test_an_auto_class_that_is_absent_lists_the_others():
    with pytest.raises(UsageError, match="choose one of: AutoModelForCausalLM, AutoModel"):
        choose_model({"auto_map": {"AutoModel": "m.A", "AutoModelForCausalLM": "m.B"}}, "AutoModelForVision")


def test_list_entries_count_as_their_first_name():
    assert entries({"auto_map": {"AutoTokenizer": [None, "t.Fast"], "AutoModel": [None, None]}}) == {
        "AutoTokenizer": ClassRef("t", "Fast")
    }


@pytest.mark.parametrize("auto_map", [["m.A"], {"AutoModel": 3}, "m.A"])
def test_a_malformed_auto_map_is_a_corrupt_config(auto_map):
    with pytest.raises(CorruptError, match="auto_map"):
        entries({"auto_map": auto_map})


def test_no_auto_map_means_no_entries():
    assert choose_model({}) is None
    assert choose_model(None) is None
