"""Checkpoints written in half precision: what the class keeps in float32 keeps all of its bits."""

from __future__ import annotations

import pytest
import torch

import shardload
from shardload import build_shell, convert, merge_to_disk, open_checkpoint
from shardload.transformers_classes.kept_on_disk import kept_on_disk
from tests.transformers_classes.releases import DTYPE

transformers = pytest.importorskip("transformers")


def t5():
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_ff": 24, "d_kv": 4, "num_heads": 4, "num_layers": 2, "vocab_size": 40}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(**sizes, decoder_start_token_id=0)
    ).eval()


@pytest.fixture
def base(tmp_path):
    t5().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def float32_of(folder):
    return {name for name, ref in open_checkpoint(folder).tensors.items() if ref.dtype == "F32"}


def wanted_of(base):
    return {name for name in open_checkpoint(base).tensors if ".wo." in name}


def test_a_checkpoint_in_float16_loads_as_the_one_in_float32(base, tmp_path):
    kept = kept_on_disk(build_shell(t5), open_checkpoint(base).tensors, torch.float16)
    convert(base, tmp_path / "half", dtype="float16", float32=kept)
    assert float32_of(tmp_path / "half") == wanted_of(base)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(
        base, **{DTYPE: torch.float16}
    ).state_dict()
    ours = shardload.from_pretrained(tmp_path / "half").state_dict()
    assert {name: tensor.dtype for name, tensor in ours.items()} == {
        name: tensor.dtype for name, tensor in theirs.items()
    }
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert kept_on_disk(build_shell(t5), open_checkpoint(base).tensors, torch.bfloat16) == frozenset()
    convert(base, tmp_path / "all", dtype="float16")
    assert float32_of(tmp_path / "all") == set()
    with pytest.raises(shardload.UsageError, match="1 names in float32=… are none of the new checkpoint's"):
        convert(base, tmp_path / "none", dtype="float16", float32=["encoder.x"])


def test_a_merge_keeps_what_the_class_keeps(base, tmp_path):
    model = t5()
    shardload.attach_lora(model, r=2, targets=["q", "wo"], init=False, seed=0)
    shardload.save_adapter(model, tmp_path / "lora")
    report = merge_to_disk(base, tmp_path / "lora", tmp_path / "half", dtype="float16")
    assert float32_of(tmp_path / "half") == wanted_of(base)
    assert f"{len(wanted_of(base))} tensors are in float32: T5ForConditionalGeneration keeps them" in str(
        report.warnings
    )
    exact = {row.name: row.dtype for row in report.tensors}
    assert {exact[name] for name in exact if ".wo." in name} == {"float32"}
    assert {exact[name] for name in exact if ".q." in name} == {"float16"}


def test_stored_parts_of_what_is_kept_are_kept(tmp_path):
    pytest.importorskip("transformers.core_model_loading")
    sizes = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 32, "num_local_experts": 2, "num_experts_per_tok": 1,
    }  # fmt: skip

    class Kept(transformers.MixtralForCausalLM):
        _keep_in_fp32_modules_strict = ("down_proj", "mlp.gate.weight")

    Kept.__name__ = "MixtralForCausalLM"
    shell = build_shell(lambda: Kept(transformers.MixtralConfig(**sizes)))
    transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes)).save_pretrained(tmp_path)
    kept = kept_on_disk(shell, open_checkpoint(tmp_path).tensors, torch.bfloat16)
    inside = "model.layers.0.block_sparse_moe"
    assert kept == {f"{inside}.experts.0.w2.weight", f"{inside}.experts.1.w2.weight", f"{inside}.gate.weight"}
    assert kept_on_disk(shell, open_checkpoint(tmp_path).tensors, torch.float32) == frozenset()
