"""A LoRA on a quantised base: what is prepared, that it learns, and what merging means."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import shardload
from shardload.adapters.kbit_training import prepare_model_for_int8_training, prepare_model_for_kbit_training
from shardload.cli.demo_repo import write_demo_repo
from tests.tiny import Net

SMALL = {
    "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16, "num_attention_heads": 4,
    "padded_vocab_size": 256,
}  # fmt: skip
TARGETS = ["query_key_value", "dense_h_to_4h"]


def test_what_is_frozen_and_what_becomes_float32():
    model = Net().to(torch.bfloat16)
    model.head.weight = model.embed.weight
    model.packed = nn.Parameter(torch.zeros(4, dtype=torch.int8), requires_grad=False)
    model.layers[0].up.weight.data = model.layers[0].up.weight.data.double()
    shardload.attach_lora(model, r=2, targets=["down"], dtype=torch.bfloat16)
    assert prepare_model_for_kbit_training(model) is model
    assert model.head.weight is model.embed.weight
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert parameter.requires_grad
            assert parameter.dtype == torch.bfloat16
        else:
            assert not parameter.requires_grad
            wide = {"packed": torch.int8, "layers.0.up.weight": torch.float64}.get(name, torch.float32)
            assert parameter.dtype == wide


def test_the_old_name_takes_its_old_arguments():
    model = prepare_model_for_int8_training(
        nn.Linear(2, 2, dtype=torch.float16),
        "lm_head",
        use_gradient_checkpointing=False,
        layer_norm_names=["ln"],
    )
    assert model.weight.dtype == torch.float32


def test_too_much_memory_is_refused_before_anything_is_changed():
    model = nn.Linear(8, 8, dtype=torch.bfloat16)
    with pytest.raises(shardload.MemoryLimitError, match="288 bytes|288"):
        prepare_model_for_kbit_training(model, max_memory=287)
    assert model.weight.dtype == torch.bfloat16
    assert model.weight.requires_grad
    assert prepare_model_for_kbit_training(model, max_memory=288).weight.dtype == torch.float32
    with pytest.raises(shardload.UsageError, match="meta"):
        prepare_model_for_kbit_training(nn.Linear(2, 2, device="meta"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("SHARDLOAD_CACHE", str(tmp_path / "cache"))
    demo = write_demo_repo()
    config = shardload.load_config(demo, trust_remote_code=True)
    for name, value in SMALL.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = shardload.resolve_class(demo, trust_remote_code=True)(config).half()
    for name, value in model.state_dict().items():  # the class leaves its weights uninitialised
        if value.dim() > 1:
            nn.init.normal_(value, std=0.1)
        elif "inv_freq" not in name:
            nn.init.constant_(value, float("norm" in name))
    shardload.save(model, tmp_path / "small")
    return tmp_path / "small"


@pytest.mark.filterwarnings("ignore")  # bitsandbytes says that it casts inputs to float16
def test_a_lora_on_an_int8_base_learns_reloads_and_merges(folder, tmp_path):
    def base(where=folder, **keywords):
        return shardload.from_pretrained(where, trust_remote_code=True, **keywords)

    model = prepare_model_for_kbit_training(base(load_in_8bit=True))
    assert "prepared for training: 9 tensors in float32 take 133.4 kB" in shardload.report_of(model).notes[-1]
    assert model.transformer.encoder.final_layernorm.weight.dtype == torch.float32
    assert model.transformer.output_layer.weight.dtype == torch.float32
    assert model.transformer.encoder.gradient_checkpointing
    shardload.attach_lora(model, r=4, alpha=8, targets=TARGETS, seed=0)
    ids = torch.arange(24)[None] * 7 % 256
    model.train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=5e-3)
    losses = []
    for _ in range(20):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(each.grad is not None for each in model.parameters() if each.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    adapter = tmp_path / "lora"
    shardload.save_adapter(model, adapter)
    again = prepare_model_for_kbit_training(base(load_in_8bit=True, adapter=adapter))
    with torch.inference_mode():
        assert torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)

    shardload.save(base(load_in_8bit=True), tmp_path / "int8")
    with pytest.raises(shardload.UnsupportedError, match="quantised") as caught:
        shardload.merge_to_disk(tmp_path / "int8", adapter, tmp_path / "merged")
    assert "dtype='bfloat16'" in caught.value.cure
    shardload.convert(tmp_path / "int8", tmp_path / "plain", dtype="float32")
    shardload.merge_to_disk(tmp_path / "int8", adapter, tmp_path / "merged", dtype="float32")
    plain = dict(shardload.open_checkpoint(tmp_path / "plain").items(copy=True))
    merged = dict(shardload.open_checkpoint(tmp_path / "merged").items(copy=True))
    import bitsandbytes

    for name, module in model.named_modules():
        if f"{name}.weight" in merged and hasattr(module, "lora_A"):
            weight = bitsandbytes.functional.int8_vectorwise_dequant(module.weight.data, module.state.SCB)
            torch.testing.assert_close(plain[f"{name}.weight"], weight, rtol=1e-6, atol=0)
            delta = 2 * module.lora_B["default"].weight @ module.lora_A["default"].weight
            expected = plain[f"{name}.weight"] + delta
            torch.testing.assert_close(merged[f"{name}.weight"], expected.detach(), rtol=1e-6, atol=1e-7)
    requantised = base(tmp_path / "merged", load_in_8bit=True)
    assert type(requantised.transformer.encoder.layers[0].mlp.dense_h_to_4h) is bitsandbytes.nn.Linear8bitLt
    report = shardload.merge(model, keep_copies=True)
    assert "4 weights were dequantised" in report.warnings[0]
    for name, module in requantised.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear8bitLt):
            assert torch.equal(model.get_submodule(name).weight.data, module.weight.data), name
