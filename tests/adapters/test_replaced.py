"""What an adapter replaces of its base: biases, modules_to_save, embeddings, what is tied to them."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn

from shardload.adapters import activate, active_adapters, detach, load_adapter
from shardload.errors import MismatchError, UsageError
from tests.adapters.tiny import (
    PREFIX,
    TOKENS,
    Tiny,
    by_hand,
    config,
    error,
    lora_tensors,
    tied,
    write,
)


@pytest.mark.parametrize("form", ["{}.base_layer.bias", "{}.bias"])
@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_biases(tmp_path, form, bias):
    model = Tiny()
    tensors = lora_tensors(model, names=("up",))
    keys = {f"layers.{n}.up": form.format(f"layers.{n}.up") for n in (0, 1)}
    if bias == "all":
        others = ("layers.{}.down", "layers.{}.norm")
        keys |= {other.format(n): other.format(n) + ".bias" for n in (0, 1) for other in others}
        keys["score"] = "score.bias"
    reference = Tiny()
    biases = {}
    for number, (path, key) in enumerate(keys.items()):
        value = torch.full_like(reference.get_submodule(path).bias, 0.1 * number)
        biases[PREFIX + key] = value
        reference.get_submodule(path).bias = nn.Parameter(value)
    report = load_adapter(model, write(tmp_path, tensors | biases, config(bias=bias)))
    assert error(model(TOKENS), by_hand(reference, tensors, 3.0)) <= 1e-5
    assert len(report.rows) == len(tensors) + len(biases)
    assert model.score.bias is not reference.score.bias
    assert model.state_dict().keys() - {
        row.target for row in report.rows
    } == Tiny().state_dict().keys() - keys.keys() - {f"{path}.bias" for path in keys}


@pytest.mark.parametrize("form", ["score.{}", "score.modules_to_save.{}", "score.modules_to_save.default.{}"])
def test_modules_to_save(tmp_path, form):
    model = Tiny()
    tensors = lora_tensors(model)
    head = {"weight": torch.ones(3, 8), "bias": torch.arange(3.0)}
    stored = {PREFIX + form.format(name): value for name, value in head.items()}
    folder = write(tmp_path, tensors | stored, config(modules_to_save=["score"]))
    load_adapter(model, folder, trainable=True)
    reference = Tiny()
    reference.score.load_state_dict(head)
    assert error(model(TOKENS), by_hand(reference, tensors, 3.0)) <= 1e-5
    assert type(model.score) is nn.Linear
    assert model.score.weight.requires_grad


def test_a_saved_embedding_of_the_same_size_is_loaded_and_said(tmp_path):
    model = Tiny()
    value = torch.randn(11, 8)
    tensors = lora_tensors(model) | {f"{PREFIX}embed.weight": value}
    report = load_adapter(model, write(tmp_path, tensors))
    assert torch.equal(model.embed.weight, value)
    assert any("saved embedding" in warning for warning in report.warnings)


def test_a_resized_vocabulary_comes_and_goes_with_the_adapter(tmp_path):
    model = tied()
    model.config = types.SimpleNamespace(vocab_size=11)
    value = torch.randn(14, 8)
    tensors = lora_tensors(Tiny()) | {f"{PREFIX}embed.weight": value}
    report = load_adapter(model, write(tmp_path, tensors))
    assert any("resized from 11 to 14" in warning for warning in report.warnings)
    assert (model.embed.num_embeddings, model.head.out_features, model.config.vocab_size) == (14, 14, 14)
    assert torch.equal(model.embed(torch.tensor([13])), value[13:])
    assert model.head(torch.ones(1, 8)).shape == (1, 14)
    activate(model, {})
    assert (model.embed.num_embeddings, model.head.out_features, model.config.vocab_size) == (11, 11, 11)
    activate(model, {"default": 1.0})
    assert len(model.head.weight) == 14
    detach(model, "default")
    assert (len(model.embed.weight), model.head.out_features, model.config.vocab_size) == (11, 11, 11)
    tensors[f"{PREFIX}embed.weight"] = torch.randn(14, 9)
    with pytest.raises(MismatchError, match="does not fit"):
        load_adapter(model, write(tmp_path / "other", tensors))


def test_what_is_tied_to_a_saved_embedding_follows_it(tmp_path):
    model = tied()
    base = model.embed.weight
    value = torch.randn(11, 8)
    load_adapter(model, write(tmp_path, lora_tensors(Tiny()) | {f"{PREFIX}embed.weight": value}))
    assert torch.equal(model.head.weight, value)
    assert model.head.weight is model.embed.weight
    model.double()
    detach(model, "default")
    assert model.head.weight is model.embed.weight is base


def test_what_is_tied_to_a_module_to_save_stays(tmp_path):
    model = tied()
    tensors = lora_tensors(Tiny()) | {f"{PREFIX}embed.weight": torch.randn(11, 8)}
    load_adapter(model, write(tmp_path, tensors, config(modules_to_save=["embed"])))
    assert torch.equal(model.head.weight, Tiny().embed.weight)


def test_two_adapters_can_not_replace_one_tensor_at_once(tmp_path):
    model = Tiny()
    head = {f"{PREFIX}score.weight": torch.ones(3, 8), f"{PREFIX}score.bias": torch.ones(3)}
    for name in ("a", "b"):
        folder = write(tmp_path / name, lora_tensors(model) | head, config(modules_to_save=["score"]))
        load_adapter(model, folder, name=name)
    with pytest.raises(UsageError, match="replace the same tensor"):
        activate(model, {"a": 1.0, "b": 1.0})
    assert active_adapters(model) == {"a": 1.0}


def test_the_base_s_tensors_follow_the_model_when_it_was_cast(tmp_path):
    model = Tiny()
    head = {f"{PREFIX}score.weight": torch.ones(3, 8), f"{PREFIX}score.bias": torch.ones(3)}
    load_adapter(model, write(tmp_path, lora_tensors(model) | head, config(modules_to_save=["score"])))
    model.double()
    detach(model, "default")
    assert model.score.weight.dtype == torch.float64
    assert torch.equal(model(TOKENS), Tiny().double()(TOKENS))
