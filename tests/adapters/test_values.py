"""Values: views of the file, the dtypes that factors compute in, devices, warnings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shardload.adapters import load_adapter, swap_adapter
from shardload.adapters.match import judge
from shardload.adapters.source import open_adapter, read_content
from shardload.adapters.values import read_values
from shardload.errors import (
    CorruptError,
    UsageError,
)
from tests.adapters.tiny import (
    TOKENS,
    Tiny,
    by_hand,
    config,
    error,
    lora_tensors,
    write,
)


def test_a_and_b_are_the_mapped_file(tmp_path):
    model = Tiny()
    folder = write(tmp_path, lora_tensors(model))
    load_adapter(model, folder)
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(folder / "adapter_model.safetensors")):
            low, high = line.split()[0].split("-")
            spans.append((int(low, 16), int(high, 16)))
    address = model.layers[1].up.lora_B["default"].weight.data_ptr()
    assert any(low <= address < high for low, high in spans)


def test_an_adapter_that_changes_nothing_says_so(tmp_path):
    tensors = {key: value * ("lora_A" in key) for key, value in lora_tensors(Tiny()).items()}
    report = load_adapter(Tiny(), write(tmp_path, tensors))
    assert any("every B is zero" in warning for warning in report.warnings)
    report = load_adapter(Tiny(), write(tmp_path / "alpha", lora_tensors(Tiny()), config(lora_alpha=0)))
    assert any("lora_alpha is 0" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("base", "stored", "computes"),
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float32, torch.float64),
    ],
)
def test_dtypes(tmp_path, base, stored, computes):
    model = Tiny(base)
    tensors = lora_tensors(model, dtype=stored)
    load_adapter(model, write(tmp_path, tensors))
    assert model.layers[0].q.lora_A["default"].weight.dtype == computes
    logits = model(TOKENS)
    assert logits.dtype == base
    wide = {key: value.to(computes) for key, value in tensors.items()}
    limit = {torch.float64: 1e-12, torch.float32: 1e-5}.get(base, 0.05)
    assert error(logits.double(), by_hand(Tiny(base), wide, 3.0).double()) <= limit


def test_a_base_on_meta_keeps_the_adapter_real(tmp_path):
    model = Tiny().to("meta")
    load_adapter(model, write(tmp_path, lora_tensors(Tiny())))
    assert model.layers[0].q.weight.device.type == "meta"
    assert model.layers[0].q.lora_A["default"].weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        ("auto", torch.bfloat16),
        ("file", torch.bfloat16),
        ("base", torch.bfloat16),
        ("stored", torch.bfloat16),
        (torch.float32, torch.float32),
        ("float32", torch.float32),
        ("fp32", torch.float32),
        ("wide", None),
    ],
)
def test_the_dtype_that_is_passed(tmp_path, dtype, wanted):
    folder = write(tmp_path, lora_tensors(Tiny(), dtype=torch.bfloat16))
    model = Tiny(torch.bfloat16)
    if wanted is None:
        with pytest.raises(UsageError, match="not a dtype"):
            load_adapter(model, folder, dtype=dtype)
        return
    load_adapter(model, folder, dtype=dtype)
    assert model.layers[0].q.lora_A["default"].weight.dtype == wanted
    assert model(TOKENS).dtype == torch.bfloat16


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", ["auto", "file", "base"])
def test_what_is_trained_is_in_float32_at_least(tmp_path, base, dtype):
    folder = write(tmp_path, lora_tensors(Tiny(), dtype=torch.bfloat16))
    model = Tiny(base)
    report = load_adapter(model, folder, trainable=True, dtype=dtype)
    wanted = torch.promote_types(base, torch.float32) if dtype == "auto" else base
    trained = [each for each in model.parameters() if each.requires_grad]
    assert {each.dtype for each in trained} == {wanted}
    assert ("computes in float32" in str(report)) == (wanted == torch.float32)
    swap_adapter(model, "default", folder, dtype=dtype)
    assert {each.dtype for each in model.parameters() if each.requires_grad} == {wanted}


def test_a_resumed_adapter_moves_by_small_steps(tmp_path):
    """AdamW's steps of 1e-4 are less than half a step of bfloat16 for most values: 9.7 % of them moved."""
    model = Tiny(torch.bfloat16)
    load_adapter(model, write(tmp_path, lora_tensors(Tiny(), dtype=torch.bfloat16)), trainable=True)
    trained = [each for each in model.parameters() if each.requires_grad]
    before = [each.detach().clone() for each in trained]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    for _ in range(3):
        model(TOKENS).float().square().mean().backward()
        optimizer.step()
    moved = [(each != old)[each.grad != 0].float().mean() for each, old in zip(trained, before, strict=True)]
    assert min(moved) == 1


def test_the_dtype_of_the_base_narrows_the_file_s(tmp_path):
    model = Tiny(torch.float16)
    load_adapter(model, write(tmp_path, lora_tensors(Tiny())), dtype="base")
    assert model.layers[0].q.lora_B["default"].weight.dtype == torch.float16


def test_a_file_that_is_replaced_after_its_headers_were_read(tmp_path):
    model = Tiny()
    file = open_adapter(write(tmp_path, lora_tensors(model)))
    report, match = judge(model, file, read_content(file), "default", strict=True)
    write(tmp_path / "other", lora_tensors(model, seed=1))
    (tmp_path / "other" / "adapter_model.safetensors").replace(tmp_path / "adapter_model.safetensors")
    with pytest.raises(CorruptError, match="changed"):
        read_values(file, match, report)
