"""One error for all faults: both shapes, the nearest module, a short list."""

from __future__ import annotations

import pytest
from torch import nn

from shardload.adapters import load_adapter
from shardload.errors import MismatchError
from tests.adapters.mutations import double_shape, drop, rename_end
from tests.adapters.tiny import PREFIX, Tiny, config, lora_tensors, write


def test_both_shapes_and_the_module_are_named(tmp_path):
    other = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(16, 8)})])})
    tensors = {k: v for k, v in lora_tensors(Tiny(), names=("q",)).items() if "layers.0" in k}
    with pytest.raises(MismatchError) as raised:
        load_adapter(other, write(tmp_path, tensors, config(base_model_name_or_path="org/base")))
    message = str(raised.value)
    assert (
        f"{PREFIX}layers.0.q.lora_A.weight: the shape does not fit (stored (2, 8), the model's is (2, 16))"
        in message
    )
    assert "nearest module: layers.0.q" in message
    assert "org/base" in message
    (fault,) = raised.value.report.faults
    assert (fault.kind, fault.stored_shape, fault.model_shape) == ("shape", (2, 8), (2, 16))


def test_all_faults_at_once(tmp_path):
    tensors = lora_tensors(Tiny())
    drop(tensors, f"{PREFIX}layers.0.q.lora_A.weight")
    rename_end(tensors, f"{PREFIX}layers.1.up.lora_B.weight")
    double_shape(tensors, f"{PREFIX}layers.1.down.lora_B.weight")
    with pytest.raises(MismatchError) as raised:
        load_adapter(Tiny(), write(tmp_path, tensors))
    assert {fault.kind for fault in raised.value.report.faults} == {"missing", "unexpected", "shape"}


def test_an_adapter_of_another_model_is_told_shortly(tmp_path):
    tensors = lora_tensors(Tiny())
    many = {
        key.replace("layers.0", f"h.{n}"): value.clone() for key, value in tensors.items() for n in range(30)
    }
    with pytest.raises(MismatchError) as raised:
        load_adapter(Tiny(), write(tmp_path, many))
    assert len(str(raised.value).splitlines()) < 20


def test_a_file_that_holds_the_base_too_is_told_from_another_base_and_the_cure_takes_the_adapter(tmp_path):
    tensors = lora_tensors(Tiny(), names=("q",))
    tensors |= {f"{PREFIX}layers.0.q.base_layer.weight": Tiny().layers[0].q.weight.detach()}
    folder = write(tmp_path, tensors)
    with pytest.raises(MismatchError, match="holds more than an adapter") as raised:
        load_adapter(Tiny(), folder)
    report = load_adapter(Tiny(), folder, **raised.value.cure.keywords)
    assert (report.modules, len(report.warnings)) == (2, 1)
