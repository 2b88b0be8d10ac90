"""Variants merged on disk: what PEFT merges, to all that the dtype has."""

from __future__ import annotations

import copy

import pytest
import torch

from shardload import UnsupportedError, from_pretrained, load_adapter, merge, merge_to_disk, open_checkpoint
from shardload.adapters.merging import change as change_module
from tests.adapters.merging.test_peft_merge import assert_bits, peft_merged
from tests.adapters.test_peft_oracle import save, trained
from tests.adapters.tiny import Tiny
from tests.tiny import write_checkpoint

pytest.importorskip("peft")


def error(found, wanted):
    return ((found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-300)).item()


VARIANTS = {
    "embedding": {"target_modules": ["embed", "q"]},
    "dora": {"use_dora": True},
    "dora, embedding": {"use_dora": True, "target_modules": ["embed", "q"]},
}


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("case", VARIANTS)
def test_variants(tmp_path, case, dtype, limit, block, monkeypatch):
    """DoRA's norms are sums, whose order is free: not the bits, but all that the dtype has."""
    monkeypatch.setattr(change_module, "BLOCK", block)
    base = Tiny(dtype)
    folder = write_checkpoint(tmp_path / "base", base.state_dict())
    wrapped = trained(copy.deepcopy(base), VARIANTS[case])
    merge_to_disk(folder, save(wrapped, tmp_path / "lora"), tmp_path / "out")
    checkpoint = open_checkpoint(tmp_path / "out")
    for name, tensor in peft_merged(wrapped).items():
        assert error(checkpoint.read(name), tensor) <= limit, name


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_on_the_embedding_of_a_tied_model(tmp_path, tied):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(config).eval()
    base.save_pretrained(tmp_path / "base")
    wrapped = trained(base, {"target_modules": ["embed_tokens", "q_proj"]})
    adapter = save(wrapped, tmp_path / "lora")
    if tied:
        with pytest.raises(UnsupportedError, match="which is the output layer too"):
            merge_to_disk(tmp_path / "base", adapter, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    else:
        merge_to_disk(tmp_path / "base", adapter, tmp_path / "out")
        assert_bits(tmp_path / "out", peft_merged(wrapped))


@pytest.mark.parametrize("layer", ["embed_tokens", "lm_head"])
def test_an_adapter_on_one_of_two_tied_weights_is_not_merged_while_loading(tmp_path, layer):
    """PEFT stores the layer's own weight beside its factors: the delta is for that layer, the weight for both."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(config).eval()
    base.save_pretrained(tmp_path / "base")
    wrapped = trained(base, {"target_modules": [layer]})
    adapter = save(wrapped, tmp_path / "lora")
    assert any("base_layer.weight" in name for name in open_checkpoint(adapter).tensors)
    with pytest.raises(UnsupportedError, match="one of several tied weights") as refused:
        from_pretrained(tmp_path / "base", adapter=adapter, merge=True)
    assert "call merge(model)" in refused.value.cure
    model = from_pretrained(tmp_path / "base")
    load_adapter(model, adapter)
    merge(model)
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, wrapped(ids).logits, atol=1e-5)
