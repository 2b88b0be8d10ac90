"""PEFT's files: pickles, flags that the file contradicts, variants told by their keys."""

from __future__ import annotations

import pytest
import torch

from shardload.adapters import load_adapter
from shardload.adapters.formats.peft import Peft
from shardload.adapters.source import open_adapter
from shardload.errors import (
    MismatchError,
    NotFoundError,
    UnsupportedError,
)
from tests.adapters.tiny import (
    PREFIX,
    TOKENS,
    Tiny,
    by_hand,
    config,
    error,
    lora_tensors,
    whole_file,
    write,
)


@pytest.mark.parametrize("form", ["bin", "legacy"])
def test_pickled_files(tmp_path, form):
    model = Tiny()
    tensors = lora_tensors(model)
    write(tmp_path, tensors, form="bin")
    if form == "legacy":
        torch.save(tensors, tmp_path / "adapter_model.bin", _use_new_zipfile_serialization=False)
    load_adapter(model, tmp_path)
    assert error(model(TOKENS), by_hand(Tiny(), tensors, 3.0)) <= 1e-5


def test_the_rank_is_the_file_s_where_the_config_has_none(tmp_path):
    model = Tiny()
    tensors = lora_tensors(model, rank=4)
    settings = config()
    del settings["r"]
    assert load_adapter(model, write(tmp_path, tensors, settings)).scales == {1.5: 6}


def test_flags_dropped_from_the_config_are_noticed(tmp_path):
    tensors, settings = whole_file()
    for flag in ("bias", "lora_bias", "modules_to_save"):
        less = {key: value for key, value in settings.items() if key != flag}
        with pytest.raises(MismatchError):
            load_adapter(Tiny(), write(tmp_path / flag, tensors, less))


def test_entries_of_a_pickle_that_are_no_tensors(tmp_path):
    with pytest.raises(MismatchError, match="epoch: the entry is no tensor"):
        load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()) | {"epoch": 3}, form="bin"))


def test_no_config(tmp_path):
    with pytest.raises(NotFoundError, match="lora_alpha"):
        load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), False))


VARIANT_KEYS = {
    "layers.0.q.lora_diag": "KaSA",
    "layers.0.q.lora_velora_projection": "VeLoRA",
    "layers.0.q.lora_arrow.router": "Arrow",
}


@pytest.mark.parametrize("key", VARIANT_KEYS)
def test_variants_are_told_by_their_keys_too(tmp_path, key):
    tensors = lora_tensors(Tiny()) | {PREFIX + key: torch.ones(8)}
    with pytest.raises(UnsupportedError, match=VARIANT_KEYS[key]):
        load_adapter(Tiny(), write(tmp_path, tensors))


BETRAYED = {
    "layers.0.q.lora_magnitude_vector": "use_dora = false",
    "layers.0.up.lora_magnitude_vector.weight": "use_dora = false",
    "layers.0.up.lora_B.bias": "lora_bias = false",
    "layers.0.up.base_layer.bias": "bias = none",
    "embed.token_adapter.trainable_tokens_delta": "trainable_token_indices",
}


@pytest.mark.parametrize("key", BETRAYED)
def test_a_flag_that_is_off_while_the_file_betrays_it(tmp_path, key):
    tensors = lora_tensors(Tiny(), dtype=torch.float32)
    tensors[PREFIX + key] = torch.ones(12 if "up" in key else 8)
    with pytest.raises(MismatchError, match=BETRAYED[key]):
        load_adapter(Tiny(), write(tmp_path, tensors))


FLAGS = {
    "use_dora": (True, "lora_magnitude_vector: the tensor is missing"),
    "lora_bias": (True, "lora_B.bias: the tensor is missing"),
    "bias": ("all", "bias: the tensor is missing"),
    "modules_to_save": (["score"], "score.weight: the tensor is missing"),
    "trainable_token_indices": ([1, 2], "trainable_tokens_delta: the tensor is missing"),
}


@pytest.mark.parametrize("key", FLAGS)
def test_a_flag_that_is_on_while_the_file_lacks_its_tensors(tmp_path, key):
    value, text = FLAGS[key]
    with pytest.raises(MismatchError, match=text):
        load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), config(**{key: value})))


@pytest.mark.parametrize(
    ("key", "settings", "is_ours"),
    [
        ("base_model.model.a.lora_A.weight", False, True),
        ("a.lora_A.default.weight", False, True),
        ("a.lora_magnitude_vector", False, True),
        ("a.lora_embedding_A", False, True),
        ("a.token_adapter.trainable_tokens_delta", False, True),
        ("a.lora_a", False, False),  # mlx-lm's
        ("a.weight", False, False),
        ("a.weight", {"peft_type": "LORA"}, True),
    ],
)
def test_a_file_is_told_by_its_keys_or_its_config(tmp_path, key, settings, is_ours):
    file = open_adapter(write(tmp_path, {key: torch.ones(2, 2)}, settings))
    assert Peft().matches(file) is is_ours
