"""PEFT as the oracle: what it merges (safe_merge=False, fp32 factors) is bit for bit what is merged here."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from shardload import merge_to_disk, open_checkpoint
from shardload.adapters.merging import change as change_module
from tests.adapters.test_peft_oracle import save, trained
from tests.adapters.tiny import Tiny
from tests.tiny import write_checkpoint

peft = pytest.importorskip("peft")

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


class Shapes(nn.Module):
    """Linear layers of shapes that BLAS treats in different ways."""

    SIZES = ((64, 64), (300, 111), (513, 257), (3, 900), (900, 3), (1, 17), (17, 1), (1025, 130))

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(columns, rows) for rows, columns in self.SIZES)
        self.embed = nn.Embedding(20, 6)

    def forward(self, x):
        return x


def peft_merged(wrapped):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wrapped.merge_and_unload(safe_merge=False).state_dict()


def assert_bits(folder, wanted):
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tensors.keys() == wanted.keys()
    different = [name for name, tensor in wanted.items() if not torch.equal(checkpoint.read(name), tensor)]
    assert different == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rank", "alpha"), [(8, 16), (7, 10), (64, 5)])
@pytest.mark.parametrize("block", [1 << 14, 1 << 20])
def test_every_bit_of_linear_layers(tmp_path, dtype, rank, alpha, block, monkeypatch):
    monkeypatch.setattr(change_module, "BLOCK", block)
    torch.manual_seed(rank)
    base = Shapes().to(dtype)
    folder = write_checkpoint(tmp_path / "base", base.state_dict(), shards=3)
    wrapped = trained(base, {"r": rank, "lora_alpha": alpha, "target_modules": r"layers\.\d+"})
    report = merge_to_disk(folder, save(wrapped, tmp_path / "lora"), tmp_path / "out")
    assert len(report.tensors) == len(Shapes.SIZES)
    assert_bits(tmp_path / "out", peft_merged(wrapped))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("targets", [r"layers\.\d+", "embed"])
def test_large_factors_are_taken_in_parts(tmp_path, dtype, targets, monkeypatch):
    """As those of a vocabulary at a high rank are: the same bits."""
    torch.manual_seed(1)
    base = Shapes().to(dtype)
    folder = write_checkpoint(tmp_path / "base", base.state_dict(), shards=3)
    adapter = save(trained(base, {"r": 7, "lora_alpha": 10, "target_modules": targets}), tmp_path / "lora")
    monkeypatch.setattr(change_module, "BLOCK", 1 << 14)
    merge_to_disk(folder, adapter, tmp_path / "whole")
    monkeypatch.setattr(change_module, "LARGE", 0)
    merge_to_disk(folder, adapter, tmp_path / "parts")
    whole = open_checkpoint(tmp_path / "whole")
    assert_bits(tmp_path / "parts", {name: whole.read(name) for name in whole.tensors})


CASES = {
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"layers.1.up": 5}, "alpha_pattern": {"q": 9}},
    "lora_bias": {"lora_bias": True, "target_modules": ["up", "down"]},
    "modules_to_save": {"modules_to_save": ["score"]},
    "all biases": {"bias": "all"},
    "adapter in half": {"dtype": torch.float16},
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_every_bit_of_other_settings(tmp_path, dtype, case):
    settings = dict(CASES[case])
    narrow = settings.pop("dtype", None)
    base = Tiny(dtype)
    folder = write_checkpoint(tmp_path / "base", base.state_dict())
    wrapped = trained(base, settings)
    if narrow is not None:  # saved in half, merged in fp32: PEFT casts such factors when it loads them
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.copy_(parameter.to(narrow))
    merge_to_disk(folder, save(wrapped, tmp_path / "lora"), tmp_path / "out")
    assert_bits(tmp_path / "out", peft_merged(wrapped))


def test_a_gpt2_of_transformers(tmp_path):
    """Transposed layers, square ones among them, told from the headers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=12)
    torch.manual_seed(0)
    base = transformers.GPT2LMHeadModel(config).eval()
    base.save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = trained(base, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True})
        merge_to_disk(tmp_path / "base", save(wrapped, tmp_path / "lora"), tmp_path / "out")
        wanted = wrapped.merge_and_unload(safe_merge=False).eval()
        found = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_an_attention_only_adapter_on_a_llama_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
    )
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    base.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    wrapped = trained(base, {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"})
    report = merge_to_disk(tmp_path / "base", save(wrapped, tmp_path / "lora"), tmp_path / "out")
    assert report.written.nbytes["linked"] + report.written.nbytes["cloned"] > 0
    wanted = peft_merged(wrapped)
    assert_bits(
        tmp_path / "out", {k: v for k, v in wanted.items() if k in open_checkpoint(tmp_path / "out").tensors}
    )
    found = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    for name, tensor in wanted.items():
        assert torch.equal(found.state_dict()[name], tensor), name
