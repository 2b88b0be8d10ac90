"""What an adapter replaces of its base: biases, modules_to_save, embeddings, what is tied to them."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn

from shardload.adapters import activate, active_adapters, detach, load_adapter
from shardload.adapters.attached import ReplacedAttribute, ReplacedTensor
from shardload.adapters.replaced import check_apart, replace_base
from shardload.errors import MismatchError, UsageError
from tests.adapters.tiny import (
    PREFIX,
    TOKENS,
    Tiny,
    config,
    lora_tensors,
    tied,
    write,
)


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


def test_what_several_adapters_replace_is_put_in_and_taken_out_by_identity():
    model, size = nn.Linear(2, 2), types.SimpleNamespace(rows=2)
    original = model.bias
    adapters = types.SimpleNamespace(attached={}, replacing=())
    for name, value in (("a", 1.0), ("b", 2.0)):
        own = nn.Parameter(torch.full((2,), value))
        adapters.attached[name] = types.SimpleNamespace(
            name=name,
            replaced=[ReplacedTensor(model, "bias", original, own)],
            replaced_attributes=[ReplacedAttribute(size, "rows", 2, int(value) + 10)],
        )
    for names, value, rows in ((("a",), 1.0, 11), (("b",), 2.0, 12), ((), None, 2), (("a",), 1.0, 11)):
        replace_base(adapters, names)
        assert adapters.replacing == names
        assert size.rows == rows
        assert (model.bias is original) if value is None else model.bias.tolist() == [value] * 2
    check_apart(adapters, {"a": 1.0})
    with pytest.raises(UsageError, match="replace the same tensor"):
        check_apart(adapters, {"a": 1.0, "b": 1.0})
    with pytest.raises(UsageError, match="no weight but 1"):
        check_apart(adapters, {"b": 0.5})
