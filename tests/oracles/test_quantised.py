"""Quantised checkpoints of transformers' own classes: dequantised, they are what the class's plain weights would be."""

from __future__ import annotations

import json

import pytest
import torch

import shardload
from shardload.placement.cut import Split, cut_by
from tests.dequantise.test_scaled import mxfp4
from tests.tiny import save_safetensors

transformers = pytest.importorskip("transformers")
# The widest of these sizes are two blocks of fp8, the last one cut.
SMALL = {
    "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "head_dim": 32, "max_position_embeddings": 64,
}  # fmt: skip


def quantised(folder, model, names, settings):
    """Write a model with fp8 blocks in place of the weights that end with one of `names`; return the plain state."""
    transformers_state = {
        name: tensor.detach().clone() for name, tensor in stored_state(model, folder).items()
    }
    tensors, plain = {}, {}
    for name, tensor in transformers_state.items():
        plain[name] = tensor
        if not name.endswith(names):
            tensors[name] = tensor
            continue
        grid = -(-tensor.shape[0] // 128), -(-tensor.shape[1] // 128)
        scales = torch.rand(grid) + 0.5
        spread = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[
            : tensor.shape[0], : tensor.shape[1]
        ]
        tensors[name] = (tensor.float() / spread).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scales
        plain[name] = (tensors[name].float() * spread).to(tensor.dtype)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    save_safetensors(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return plain


def stored_state(model, folder):
    """Return the tensors under the names that the library stores them by."""
    model.save_pretrained(folder)
    return dict(shardload.open_checkpoint(folder).items(copy=True))


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize("kind", ["Llama", "Qwen3Moe"])
def test_fp8_blocks_go_into_the_class_and_through_its_conversion(tmp_path, kind):
    torch.manual_seed(0)
    more = (
        {"num_experts": 4, "moe_intermediate_size": 192, "num_experts_per_tok": 2}
        if kind == "Qwen3Moe"
        else {}
    )
    config = getattr(transformers, f"{kind}Config")(**SMALL, **more, dtype=torch.bfloat16)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).bfloat16().eval()
    plain = quantised(tmp_path, model, ("_proj.weight",), FP8)
    save_safetensors(plain, (tmp_path / "plain.safetensors"))
    reference = getattr(transformers, f"{kind}ForCausalLM")(config).bfloat16().eval()
    other = tmp_path / "reference"
    reference.save_pretrained(other)
    for path in other.glob("*.safetensors"):
        path.unlink()
    (tmp_path / "plain.safetensors").rename(other / "model.safetensors")
    wanted = shardload.from_pretrained(other, dtype="bfloat16").state_dict()

    loaded = shardload.from_pretrained(tmp_path, dtype="bfloat16")
    assert type(loaded).__name__ == f"{kind}ForCausalLM"
    found = loaded.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert getattr(loaded.config, "quantization_config", None) is None
    ids = torch.arange(12)[None]
    assert torch.isfinite(loaded(ids).logits).all()

    with pytest.raises(shardload.UnsupportedError) as caught:
        shardload.from_pretrained(tmp_path)
    assert caught.value.code == "E-QUANT"
    assert "dtype='bfloat16'" in caught.value.cure


def test_mxfp4_goes_into_the_experts_of_gpt_oss(tmp_path):
    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        **{**SMALL, "hidden_size": 64, "intermediate_size": 32, "head_dim": 16}, num_local_experts=3
    )
    model = transformers.GptOssForCausalLM(config).bfloat16().eval()
    state = stored_state(model, tmp_path)
    wanted = {}
    for layer in range(2):
        for name, outputs, blocks in (("gate_up_proj", 64, 2), ("down_proj", 64, 1)):
            parts, plain = mxfp4(3, outputs, blocks, seed=layer)
            key = f"model.layers.{layer}.mlp.experts.{name}"
            assert state.pop(key).shape == plain.shape
            wanted[key] = plain.bfloat16()
            state |= {f"{key}_{part.rpartition('_')[2]}": tensor for part, tensor in parts.items()}
    save_safetensors(state, tmp_path / "model.safetensors")
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**told, "quantization_config": {"quant_method": "mxfp4"}})
    )
    loaded = shardload.from_pretrained(tmp_path, dtype="bfloat16").state_dict()
    for key, tensor in wanted.items():
        assert torch.equal(loaded[key], tensor)
        assert loaded[key].is_contiguous()


@pytest.mark.parametrize("dim", [0, 1])
def test_the_parts_of_ranks_are_those_of_the_whole(tmp_path, dim):
    weight = torch.randn(515, 384).to(torch.float8_e4m3fn)
    tensors = {"w": weight, "w_scale_inv": torch.rand(5, 3) + 0.1}
    save_safetensors(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": FP8}))
    checkpoint = shardload.dequantised(shardload.open_checkpoint(tmp_path), "bfloat16")
    whole, tensor, read = checkpoint.read("w"), checkpoint.tensors["w"], 0
    for rank in range(4):
        cut = cut_by((515, 384), (Split(dim, 4, rank),))
        part = cut.of(tensor)
        assert torch.equal(checkpoint.read_derived(part), cut.view(whole))
        read += next(ref.nbytes for ref in part.stored.values())
    assert read <= 1.02 * weight.nbytes if dim == 0 else read <= 2 * weight.nbytes
