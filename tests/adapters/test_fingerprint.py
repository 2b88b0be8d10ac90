"""The fingerprint of a base: which base an adapter knows again, and untrusted text in its place."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from shardload import MismatchError, attach_lora, load_adapter, save_adapter
from shardload.adapters.fingerprint import METADATA_KEY, base_faults, fingerprint_of
from tests.adapters.tiny import TOKENS, Tiny, randomised
from tests.tiny import save_safetensors


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16, torch.float64])
def test_it_knows_its_base_in_another_dtype(tmp_path, cast):
    model = Tiny()
    attach_lora(model, 2, 5, ["q", "up", "embed"])
    save_adapter(model, tmp_path / "wide")
    narrow = Tiny().to(cast)
    load_adapter(narrow, tmp_path / "wide")
    save_adapter(narrow, tmp_path / "narrow")
    for other in (Tiny(), Tiny().to(cast), Tiny().to(cast).float()):
        load_adapter(other, tmp_path / "narrow")


def test_it_knows_another_base(tmp_path):
    model = Tiny()
    attach_lora(model, 2, 5, ["q", "up"])
    randomised(model)
    save_adapter(model, tmp_path)
    other = Tiny()
    with torch.no_grad():
        for layer in other.layers:
            layer.q.weight.mul_(1.001)
    plain = other(TOKENS)
    with pytest.raises(
        MismatchError, match="trained on a base with other values of it and of 1 more"
    ) as raised:
        load_adapter(other, tmp_path)
    assert raised.value.report.faults[0].key == "layers.0.q.weight"
    assert torch.equal(other(TOKENS), plain)
    report = load_adapter(other, tmp_path, strict=False)
    assert "trained on a base with other values" in report.warnings[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 1}',
        '{"version": 1, "tensors": {"layers.0.q.weight": 3}}',
        "[" * 100_000,
    ],
)
def test_a_fingerprint_that_is_none_says_nothing(tmp_path, text):
    model = Tiny()
    attach_lora(model, 2, 5, ["q"])
    save_adapter(model, tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert METADATA_KEY in file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_safetensors(tensors, tmp_path / "adapter_model.safetensors", {METADATA_KEY: text})
    load_adapter(Tiny(), tmp_path)


BASE = {f"layers.{n}.w": torch.randn(5, 3, generator=torch.Generator().manual_seed(n)) for n in range(40)}


def faults(text, tensors):
    return [(fault.kind, fault.key) for fault in base_faults(text, tensors)]


def test_it_is_a_few_values_of_a_few_tensors():
    text = fingerprint_of(BASE)
    stored = json.loads(text)["tensors"]
    assert len(stored) <= 16
    for name, entry in stored.items():
        flat = BASE[name].flatten()
        assert (entry["shape"], entry["dtype"]) == ([5, 3], "float32")
        assert entry["values"] == [flat[place * 14 // 7].item() for place in range(8)]
    assert faults(text, BASE) == []


def test_what_can_not_be_compared_is_left_out():
    odd = {
        "meta": torch.empty(2, device="meta"),
        "int": torch.ones(2, dtype=torch.int8),
        "empty": torch.empty(0),
    }
    assert json.loads(fingerprint_of(odd))["tensors"] == {}
    text = fingerprint_of({"w": torch.ones(4)})
    assert (
        faults(text, {})
        == faults(text, {"w": None})
        == faults(text, {"w": torch.empty(4, device="meta")})
        == []
    )


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("now", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_base_in_another_dtype_is_the_same_base(stored, now):
    wide = torch.randn(7, 5, dtype=torch.float64)
    text = fingerprint_of({"w": wide.to(stored)})
    narrower_last = wide.to(stored).to(now)
    assert faults(text, {"w": narrower_last}) == []
    other = narrower_last.clone()
    other.view(-1)[0] *= 2
    assert faults(text, {"w": other}) == [("base", "w")]
    assert faults(text, {"w": narrower_last.view(5, 7)}) == [("base", "w")]


def test_the_first_that_differs_is_named_and_the_others_are_counted():
    (fault,) = base_faults(
        fingerprint_of({"a": torch.ones(2), "b": torch.ones(2)}), {"a": torch.zeros(2), "b": torch.zeros(2)}
    )
    assert (fault.key, "of 1 more tensors" in fault.text) == ("a", True)
