"""Stored tensors are paired with the model's tensors that they replace, or are a fault."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload.adapters import load_adapter
from shardload.adapters.adapter import AdapterContent, ReplacedEntry
from shardload.adapters.adapter_match import AdapterMatch
from shardload.adapters.match_replaced import match_replaced
from shardload.adapters.module_index import ModuleIndex
from shardload.tensor_ref import Span, TensorRef
from tests.adapters.tiny import PREFIX, TOKENS, Tiny, by_hand, config, error, lora_tensors, tied, write


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


def matched(model, *entries):
    """Match stored tensors, each (path, attribute, shape, dtype, more), and return the plan."""
    made = []
    for path, attribute, shape, dtype, more in entries:
        ref = TensorRef(f"{path}.{attribute}", dtype, shape, "adapter", Span(0, 8))
        made.append(ReplacedEntry(path, attribute, ref, **more))
    result, index = AdapterMatch(), ModuleIndex(model)
    places = {path: path for path in index.modules}
    content = AdapterContent(format="x", loras=(), replaced=tuple(made))
    match_replaced(model, content, index, places, result)
    return result


@pytest.mark.parametrize(
    ("entry", "kind", "text"),
    [
        (("no.such", "weight", (3, 8), "F32", {}), "unexpected", "no module"),
        (("score", "scale", (3,), "F32", {}), "unexpected", "has no tensor 'scale'"),
        (("score", "weight", (3, 9), "F32", {}), "shape", "does not fit"),
        (("score", "weight", (3, 8), "I8", {}), "unsupported", "can't replace"),
        (("score", "weight", (3, 8), "F32", {"declared": False}), "unexpected", "does not account"),
        (("embed", "weight", (11, 9), "F32", {}), "shape", "does not fit"),
    ],
)
def test_what_replaces_nothing_is_a_fault(entry, kind, text):
    result = matched(Tiny(), entry)
    assert result.replaced == []
    (fault,) = result.faults
    assert (fault.kind, text in fault.text) == (kind, True)


def test_an_embedding_may_have_another_number_of_rows_and_nothing_else_may():
    result = matched(Tiny(), ("embed", "weight", (14, 8), "F32", {"declared": False}))
    assert [found.resized for found in result.replaced] == [True]
    assert len(result.warnings) == 2  # it is resized, and no config accounts for it
    assert matched(Tiny(), ("score", "weight", (14, 8), "F32", {})).faults
    biased = tied()
    biased.head.bias = nn.Parameter(torch.zeros(11))  # it would have to grow too
    assert matched(biased, ("embed", "weight", (14, 8), "F32", {})).faults


def test_a_tensor_goes_to_its_ties_where_the_entry_says_so():
    model = tied()
    (found,) = matched(model, ("embed", "weight", (11, 8), "F32", {"tied": True})).replaced
    assert [(module is model.head, name) for module, name in found.ties] == [(True, "weight")]
    (found,) = matched(model, ("embed", "weight", (11, 8), "F32", {})).replaced
    assert found.ties == []
    both = [(path, "weight", (11, 8), "F32", {"tied": True}) for path in ("embed", "head")]
    assert [found.ties for found in matched(model, *both).replaced] == [[], []]


def test_one_module_of_two_names_is_replaced_once():
    model = Tiny()
    model.again = model.score
    result = matched(model, *[(path, "weight", (3, 8), "F32", {}) for path in ("score", "again")])
    assert len(result.replaced) == 1
    assert [fault.kind for fault in result.faults] == ["duplicate"]
