"""Which field of a config explains a size: by its value and by what its name is about."""

from __future__ import annotations

import pytest

from shardload.diagnosis.config_fields import (
    Field,
    explaining,
    fields_of,
    fields_saying,
    is_same_change,
    is_table,
    of_part,
)

CONFIG = {
    "vocab_size": 50, "max_position_embeddings": 32, "type_vocab_size": 2, "num_labels": 2, "pre_seq_len": 8,
    "hidden_size": 32, "num_key_value_heads": 2, "num_attention_heads": 4, "channels": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "model", "stored", "field", "new"),
    [
        ("wte.weight", 50, 60, "vocab_size", 60),
        ("wpe.weight", 32, 64, "max_position_embeddings", 64),
        ("embeddings.token_type_embeddings.weight", 2, 3, "type_vocab_size", 3),
        ("classifier.bias", 2, 5, "num_labels", 5),
        ("prefix_encoder.embedding.weight", 8, 16, "pre_seq_len", 16),
        ("layers.0.self_attn.k_proj.weight", 16, 32, "num_key_value_heads", 4),
        ("layers.0.input_layernorm.weight", 32, 64, "hidden_size", 64),
        ("layers.0.attn.qkv.weight", 96, 192, "hidden_size", 64),
        ("conv.weight", 8, 4, "channels", 4),
    ],
)
def test_the_field_that_fits_by_value_and_name(key, model, stored, field, new):
    (found,) = explaining(CONFIG, key, model, stored)
    assert found == Field(field, CONFIG[field], new)


GLM = {"hidden_size": 4096, "num_attention_heads": 32, "kv_channels": 128, "multi_query_group_num": 2}


@pytest.mark.parametrize("config", [GLM, {"text_config": GLM}], ids=["flat", "nested"])
def test_the_groups_of_a_fused_qkv_are_counted_by_its_rows(config):
    (found,) = explaining(config, "layers.0.self_attention.query_key_value.weight", 4608, 5120)
    assert (found.name.rpartition(".")[2], found.value, found.new) == ("multi_query_group_num", 2, 4)
    assert not [
        field
        for field in explaining(config, "layers.0.self_attention.query_key_value.weight", 4608, 4700)
        if "group" in field.name
    ]


def test_nothing_is_named_that_no_name_connects():
    assert explaining(CONFIG, "wte.weight", 2, 3) == []
    assert explaining(CONFIG, "gamma.weight", 50, 60) == []
    assert explaining({}, "wte.weight", 50, 60) == []


def test_two_fields_that_fit_equally_are_both_named():
    twins = {"num_labels": 2, "num_classes": 2}
    assert [field.name for field in explaining(twins, "classifier.weight", 2, 5)] == [
        "num_labels",
        "num_classes",
    ]


@pytest.mark.parametrize(
    ("field", "name", "model", "stored", "same"),
    [
        (Field("hidden_size", 32, 64), "q_proj", 96, 192, True),
        (Field("hidden_size", 32, 64), "q_proj", 16, 32, True),
        (Field("hidden_size", 32, 64), "q_proj", 96, 128, False),
        (Field("num_labels", 2, 4), "classifier", 8, 16, False),
        (Field("num_key_value_heads", 2, 4), "k_proj", 8, 16, True),
        (Field("num_key_value_heads", 2, 4), "q_proj", 8, 16, False),
    ],
)
def test_a_change_changes_its_multiples_too(field, name, model, stored, same):
    assert is_same_change(field, f"layers.0.{name}.weight", model, stored) is same


def test_tables_have_a_row_for_each_token():
    assert all(map(is_table, ("wte.weight", "lm_head.weight", "shared.weight", "a.output_layer.weight")))
    assert not any(
        map(is_table, ("wpe.weight", "classifier.weight", "prefix_encoder.embedding.weight", "fc.bias"))
    )


def test_fields_are_found_by_value_and_hint_also_inside_other_fields():
    config = {"text_config": {"hidden_size": 16, "flag": True, "name": "x"}, "num_heads": 16}
    assert dict(fields_of(config)) == {"text_config.hidden_size": 16, "num_heads": 16}
    assert fields_saying(config, 16, "hidden") == ["text_config.hidden_size"]
    assert fields_saying(config, 16, "vocab") == fields_saying(config, 1, "flag") == []
    deep = {}
    for _ in range(100):
        deep = {"a": deep, "n": 1}
    assert len(list(fields_of(deep))) < 10


@pytest.mark.parametrize(
    ("key", "names", "best"),
    [
        ("vision_tower.layers.", ["text_config.n", "vision_config.n", "n"], ["vision_config.n"]),
        ("language_model.layers.", ["vision_config.n", "text_config.n"], ["text_config.n"]),
        ("layers.", ["text_config.n", "vision_config.n"], ["text_config.n", "vision_config.n"]),
        ("layers.", ["n", "vision_config.n"], ["n"]),
        ("vision_tower.lm_head.weight", ["text_config.n", "vision_config.n"], ["vision_config.n"]),
        ("decoder.block.", ["num_layers", "num_decoder_layers"], ["num_decoder_layers"]),
        ("encoder.block.", ["num_layers", "num_decoder_layers"], ["num_layers"]),
        ("encoder.block.", ["decoder_layers"], []),
    ],
)
def test_the_field_of_the_part_that_the_key_is_in(key, names, best):
    assert of_part(names, key) == best
