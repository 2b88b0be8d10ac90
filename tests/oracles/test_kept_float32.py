"""Weights that classes of transformers keep in float32: its own loader is the oracle, dtype and value by name."""

from __future__ import annotations

import pytest
import torch

import shardload
from tests.tiny import assert_same_state

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

T5 = {"vocab_size": 99, "d_model": 32, "num_layers": 2, "num_heads": 4, "d_ff": 64, "d_kv": 8}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "num_attention_heads": 4}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8, "num_experts_per_tok": 2}
MOE = {"n_routed_experts": 4, "moe_intermediate_size": 16, "first_k_dense_replace": 2}
CLASSES = {
    "T5ForConditionalGeneration": T5,
    "UMT5EncoderModel": T5,
    "RwkvModel": {**SMALL, **TOKENS, "context_length": 16},
    "GptOssForCausalLM": {**SMALL, **TOKENS, **EXPERTS, "num_local_experts": 4, "sliding_window": 8},
    "Glm4MoeForCausalLM": {**SMALL, **TOKENS, **EXPERTS, **MOE},
    "VoxtralEncoder": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_mel_bins": 8,
    },
    "LlamaForCausalLM": {**SMALL, **TOKENS},
    "MambaForCausalLM": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "state_size": 4},
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "auto"], ids=str)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_every_tensor_is_that_of_transformers_own_loader(name, stored, dtype, tmp_path):
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    cls(cls.config_class(**CLASSES[name])).to(stored).save_pretrained(tmp_path)
    theirs = cls.from_pretrained(tmp_path, dtype=dtype)
    ours = shardload.from_pretrained(tmp_path, model_class=cls, dtype=dtype)
    assert_same_state(ours, theirs)
    assert {key: tensor.dtype for key, tensor in ours.state_dict().items()} == {
        key: tensor.dtype for key, tensor in theirs.state_dict().items()
    }


def test_a_model_that_overflows_in_half_computes_as_transformers_does(tmp_path):
    cls = transformers.T5ForConditionalGeneration
    torch.manual_seed(0)
    model = cls(transformers.T5Config(**T5, decoder_start_token_id=0))
    with torch.no_grad():
        for block in (*model.encoder.block, *model.decoder.block):
            block.layer[-1].DenseReluDense.wi.weight.mul_(60)
            block.layer[-1].DenseReluDense.wo.weight.mul_(3000)
    model.save_pretrained(tmp_path)
    tokens = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[0, 3]])}
    theirs = cls.from_pretrained(tmp_path, dtype=torch.float16)
    ours = shardload.from_pretrained(tmp_path, dtype="float16")
    with torch.no_grad():
        assert torch.equal(ours(**tokens).logits, theirs(**tokens).logits)


def test_the_caller_overrules_the_class_by_its_own_attribute(tmp_path, monkeypatch):
    cls = transformers.T5EncoderModel
    cls(transformers.T5Config(**T5)).save_pretrained(tmp_path)
    shell = shardload.build_shell(lambda: cls(transformers.T5Config(**T5)))
    shell.model._keep_in_fp32_modules = None
    shardload.fill(shell, shardload.open_checkpoint(tmp_path), target=shardload.OnDevice(dtype=torch.float16))
    assert {tensor.dtype for tensor in shell.model.parameters()} == {torch.float16}
