"""Key maps against transformers' own conversions: the same tensors bit for bit, and the same files back."""

from __future__ import annotations

import pytest
import torch

from shardload import KeyMap, convert, diff, from_pretrained, open_checkpoint, report_of, save
from tests.tiny import assert_same_state, tensor_bytes, write_checkpoint

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOKENS = torch.tensor([[1, 5, 9, 3]])

EXPERTS = (
    KeyMap()
    .rename("{...}.block_sparse_moe.gate.weight", "{...}.mlp.gate.weight")
    .cat(
        [f"model.layers.{{}}.block_sparse_moe.experts.{{}}.{name}.weight" for name in ("w1", "w3")],
        "model.layers.{}.block_sparse_moe.experts.{}.gate_up",
    )
    .stack("model.layers.{}.block_sparse_moe.experts.{n}.gate_up", "model.layers.{}.mlp.experts.gate_up_proj")
    .stack("model.layers.{}.block_sparse_moe.experts.{n}.w2.weight", "model.layers.{}.mlp.experts.down_proj")
)


@pytest.fixture
def mixtral(tmp_path):
    """A tiny Mixtral, and the published layout of it: transformers writes the old names by its own reverse."""
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "old", max_shard_size="60KB")
    return tmp_path / "old", model


def test_separate_experts_load_fused_as_transformers_fuses_them(mixtral):
    folder, oracle = mixtral
    stored = open_checkpoint(folder)
    assert "model.layers.1.block_sparse_moe.experts.3.w1.weight" in stored.tensors
    assert len(stored.shards) > 1
    model = from_pretrained(folder, key_map=EXPERTS)
    assert_same_state(model, oracle)
    with torch.no_grad():
        assert torch.allclose(model(TOKENS).logits, oracle(TOKENS).logits, atol=1e-6)
    # Of [4, 96, 32] and [4, 32, 48] float32 in 2 layers: one layer's parts lie side by side, and stay views.
    note = next(note for note in report_of(model).notes if note.startswith("key map"))
    assert "2 tensors are joined in new memory (73.7 kB" in note


def test_saved_through_the_inverse_it_is_the_published_file_again(mixtral, tmp_path):
    folder, _ = mixtral
    stored = open_checkpoint(folder)
    bound = EXPERTS.bind(stored.tensors)
    model = from_pretrained(folder, key_map=bound)
    save(model, tmp_path / "again", key_map=bound)
    again = open_checkpoint(tmp_path / "again")
    assert again.tensors.keys() == stored.tensors.keys()
    for name in stored.tensors:
        assert tensor_bytes(again.read(name)) == tensor_bytes(stored.read(name)), name


def test_converted_on_disk_it_is_what_transformers_itself_loads(mixtral, tmp_path):
    folder, oracle = mixtral
    bound = EXPERTS.bind(open_checkpoint(folder).tensors)
    convert(folder, tmp_path / "new", key_map=bound, progress=False)
    assert_same_state(from_pretrained(tmp_path / "new"), oracle)
    theirs = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "new").eval()
    assert_same_state(theirs, oracle)
    convert(tmp_path / "new", tmp_path / "back", key_map=bound.invert(), progress=False)
    assert diff(folder, tmp_path / "back", values=True, progress=False).ok


def test_linear_weights_load_turned_into_conv1d(tmp_path):
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    oracle = transformers.GPT2LMHeadModel(config).eval()
    turned = {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}
    state = {
        key: value.T.contiguous() if key.split(".", 3)[-1] in turned else value.contiguous()
        for key, value in oracle.state_dict().items()
        if key != "lm_head.weight"
    }
    folder = write_checkpoint(
        tmp_path / "linear", state, config={**config.to_dict(), "architectures": ["GPT2LMHeadModel"]}
    )
    key_map = KeyMap()
    for name in sorted(turned):
        key_map = key_map.transpose(f"transformer.h.{{}}.{name}")
    model = from_pretrained(folder, key_map=key_map)
    assert_same_state(model, oracle)
    with torch.no_grad():
        assert torch.allclose(model(TOKENS).logits, oracle(TOKENS).logits, atol=1e-6)
    model(TOKENS, labels=TOKENS).loss.backward()
    oracle(TOKENS, labels=TOKENS).loss.backward()
    for (key, ours), theirs in zip(model.named_parameters(), oracle.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6), key
    assert "8 tensors are views of their file that are not contiguous" in str(report_of(model))
