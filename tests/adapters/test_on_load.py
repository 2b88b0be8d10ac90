"""An adapter that is merged while its base is loaded, where the base would stay packed."""

from __future__ import annotations

import json

import pytest
import torch

import shardload
from shardload.adapters.on_load import adapter_memory
from tests.adapters import tiny
from tests.adapters.merging.test_packed_bases import Model
from tests.dequantise.packed import folder_of
from tests.tiny import write_checkpoint


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("asked", [True, False], ids=["asked", "stored"])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_what_stays_as_bitsandbytes_packed_it_has_cures_that_work(tmp_path, kind, asked):
    bnb = pytest.importorskip("bitsandbytes")
    options = (
        {"load_in_8bit": True} if kind == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    )
    model = Model((64, 64))
    adapter = tiny.write(tmp_path / "lora", tiny.lora_tensors(model, names=("layer",)))
    plain = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    base = folder_of(tmp_path / "plain", plain, None)
    make = {"model_class": lambda _: Model((64, 64))}
    packed = shardload.from_pretrained(base, **make, quantization_config=options)
    shardload.save(packed, tmp_path / "packed")
    told = {"quant_method": "bitsandbytes", **options}
    (tmp_path / "packed/config.json").write_text(json.dumps({"quantization_config": told}))
    load = {**make, **({"quantization_config": options} if asked else {})}
    where = tmp_path / "packed"
    with pytest.raises(shardload.UnsupportedError, match="no room for a delta") as caught:
        shardload.from_pretrained(where, **load, adapter=adapter, merge=True)
    assert caught.value.where == "layer.weight"
    first, second, third = caught.value.cure.split("; or ")
    assert "pass dtype='bfloat16'" in first
    assert "call merge(model)" in second
    assert "leave out merge=True" in third
    wide = shardload.from_pretrained(where, **make, dtype="float32", adapter=adapter, merge=True).layer.weight
    done = shardload.from_pretrained(where, **load, dtype="float32", adapter=adapter, merge=True).layer
    if asked:  # the sum is quantised anew, from what was plain in float32
        functional = bnb.functional
        if kind == "int8":
            own, scales, _ = functional.int8_vectorwise_quant(wide.detach().half())
            assert torch.equal(done.weight.data, own)
            assert torch.equal(done.weight.SCB, scales)
        else:
            own, _ = functional.quantize_4bit(wide.detach(), blocksize=64, quant_type="nf4")
            assert torch.equal(done.weight.data, own)
    else:
        assert torch.equal(done.weight, wide)
    apart = shardload.from_pretrained(where, **load, adapter=adapter)
    shardload.merge(apart, keep_copies=True)
    if asked:
        assert torch.equal(apart.layer.weight.data, done.weight.data)
    # An adapter of what is plain in such a checkpoint is merged, and the packed weights stay.
    other = tiny.write(tmp_path / "other", tiny.lora_tensors(model, names=("other",)))
    mixed = shardload.from_pretrained(where, **load, adapter=other, merge=True)
    assert torch.equal(mixed.layer.weight.data, packed.layer.weight.data)
    assert not torch.equal(mixed.other.weight, packed.other.weight)


@pytest.mark.parametrize(
    ("base", "code", "anonymous"),
    [("bfloat16", None, 4 * 64), ("float16", None, 0), ("float16", "F32", 4 * 64)],
)
def test_factors_compute_in_the_wider_dtype(tmp_path, base, code, anonymous):
    """Those of float16 on a base in bfloat16 compute in float32: no other dtype holds both."""
    tables = [
        write_checkpoint(tmp_path / dtype, {"w": torch.ones(8, 8, dtype=getattr(torch, dtype))})
        for dtype in ("float16", base)
    ]
    factors, weights = (shardload.open_checkpoint(table).tensors.values() for table in tables)
    assert adapter_memory(factors, weights, code, "cpu").anonymous == anonymous
