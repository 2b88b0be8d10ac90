"""The auto classes of parts: the library's tables by name, and what repos register."""

from __future__ import annotations

import pytest

from shardload.library_parts import auto_tables
from shardload.library_parts.importer import part_module
from shardload.library_parts.release import is_part, name_in_library

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(
    "kind", ["llama", "qwen2", "bert", "hubert", "siglip_vision_model", "clip", "whisper", "t5"]
)
def test_a_model_type_has_the_librarys_classes(kind):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    made = auto_tables.config_class_of(kind)
    assert is_part(made)
    assert made.__name__ == CONFIG_MAPPING[kind].__name__
    table = auto_tables.auto_name("MODEL_MAPPING")
    assert name_in_library(table[made]).rpartition(".")[2] == MODEL_MAPPING[CONFIG_MAPPING[kind]].__name__


@pytest.mark.parametrize(
    ("auto", "kind", "name"),
    [
        ("AutoModel", "mistral", "MistralModel"),
        ("AutoModelForCausalLM", "mistral", "MistralForCausalLM"),
        ("AutoModelForMaskedLM", "bert", "BertForMaskedLM"),
        ("AutoModelForSequenceClassification", "bert", "BertForSequenceClassification"),
        ("AutoModelForSeq2SeqLM", "bart", "BartForConditionalGeneration"),
        ("AutoModelForCTC", "hubert", "HubertForCTC"),
        ("AutoModelForTokenClassification", "roberta", "RobertaForTokenClassification"),
    ],
)
def test_an_auto_class_makes_the_class_of_a_config(auto, kind, name):
    config = auto_tables.AUTO_CONFIG.for_model(kind, hidden_size=8, d_model=8, vocab_size=9)
    table = auto_tables.auto_name(auto)._model_mapping
    assert table[type(config)].__name__ == name


def test_names_that_are_no_auto_classes_are_not_theirs():
    assert auto_tables.auto_name("LlamaModel") is None
    assert auto_tables.auto_name("AutoNothing") is None
    with pytest.raises(KeyError):
        auto_tables.config_class_of("no_such_type")
    bert = part_module("models.bert.configuration_bert").BertConfig
    assert bert not in auto_tables.auto_name("MODEL_FOR_CTC_MAPPING")


def test_the_tables_of_names_are_the_librarys():
    from transformers.models.auto import configuration_auto, modeling_auto

    for name, module in (
        ("CONFIG_MAPPING_NAMES", configuration_auto),
        ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", modeling_auto),
    ):
        expected = getattr(module, name)
        assert auto_tables.auto_name(name) == {
            key: value for key, value in expected.items() if value is not None
        }
