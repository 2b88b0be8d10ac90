"""MXFP4 and ChatGLM's own packing: numbers with scales, against plain readings and transformers' own."""

from __future__ import annotations

import pytest
import torch

import shardload
from shardload.dequantise.scaled import FP4, INT4, Scaled
from tests.dequantise.packed import folder_of, holds


def mxfp4(experts=3, outputs=10, blocks=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (experts, outputs, blocks)
    stored = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(118, 132, shape, dtype=torch.uint8, generator=generator)
    values = torch.tensor(FP4)
    pairs = torch.stack([values[(stored & 15).long()], values[(stored >> 4).long()]], -1).flatten(-2)
    wanted = (pairs * (scales.float() - 127).exp2()[..., None]).flatten(-2).transpose(1, 2).contiguous()
    return {"experts.up_blocks": stored, "experts.up_scales": scales}, wanted


def test_mxfp4_comes_out_as_the_model_holds_it(tmp_path):
    tensors, wanted = mxfp4()
    holds(folder_of(tmp_path / "packed", tensors, {"quant_method": "mxfp4"}), wanted, "experts.up")


def test_mxfp4_is_that_of_transformers(tmp_path):
    module = pytest.importorskip("transformers.integrations.mxfp4")
    tensors, wanted = mxfp4()
    made = module.convert_moe_packed_tensors(tensors["experts.up_blocks"], tensors["experts.up_scales"])
    assert torch.equal(made, wanted.bfloat16())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t["experts.up_scales"].__setitem__((0, 1, 1), 255), "experts.up_scales"),
        (lambda t: t.__setitem__("experts.up_scales", t["experts.up_scales"][:, :-1]), "experts.up_scales"),
        (lambda t: t.__setitem__("experts.up_blocks", t["experts.up_blocks"][..., :8]), "experts.up_blocks"),
    ],
)
def test_changed_parts_are_refused_by_name(tmp_path, change, named):
    tensors, _ = mxfp4()
    change(tensors)
    checkpoint = shardload.open_checkpoint(folder_of(tmp_path / "packed", tensors, {"quant_method": "mxfp4"}))
    with pytest.raises(shardload.CorruptError) as caught:
        dict(shardload.dequantised(checkpoint, "bfloat16").items())
    assert named in caught.value.what


@pytest.mark.parametrize("bits", [4, 8])
def test_chatglm(tmp_path, bits):
    most = 1 << (bits - 1)
    whole = torch.randint(-most, most, (24, 64), generator=torch.Generator().manual_seed(bits))
    stored = whole if bits == 8 else (whole[:, ::2] << 4) | (whole[:, 1::2] & 15)
    stored = torch.where(stored > 127, stored - 256, stored).to(torch.int8)
    scales = (torch.rand(24) + 0.1).half()
    tensors = {"layer.weight": stored, "layer.weight_scale": scales}
    holds(
        folder_of(tmp_path / "packed", tensors, None, quantization_bit=bits), whole.half() * scales[:, None]
    )
    out = shardload.open_checkpoint(tmp_path / "packed-plain")
    assert "quantization_bit" not in out.config


def test_chatglm_without_its_bits_is_not_guessed(tmp_path):
    tensors = {"layer.weight": torch.ones(8, 8, dtype=torch.int8), "layer.weight_scale": torch.ones(8).half()}
    folder = folder_of(tmp_path / "packed", tensors, None)
    with pytest.raises(shardload.UnsupportedError, match="4 or of 8 bits"):
        shardload.dequantised(shardload.open_checkpoint(folder), "bfloat16")


def test_rows_of_stacked_matrices_have_the_scales_of_their_own_blocks():
    scheme = Scaled("fp8", "fp8", height=5, width=8, block=(4, 4))
    cuts = scheme.cuts(range(4, 11), range(8))
    assert cuts["scales"] == ((0, 1, 4),)  # the second block of the first matrix to the first of the third
    assert len(INT4) == 16
