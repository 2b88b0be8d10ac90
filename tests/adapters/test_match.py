"""Every tensor of a file is consumed exactly once, or the load raises, names key and module, and changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload.adapters import load_adapter
from shardload.adapters.match import match_adapter
from shardload.adapters.source import open_adapter, read_content
from shardload.errors import (
    CorruptError,
    MismatchError,
    ShardloadError,
    UnsupportedError,
)
from tests.adapters.mutations import (
    double_key,
    double_shape,
    drop,
    empty,
    integers,
    lose_prefix,
    put_inf,
    put_nan,
    rename_adapter,
    rename_end,
    rename_module,
    transpose,
)
from tests.adapters.tiny import (
    PREFIX,
    Tiny,
    assert_unchanged,
    config,
    lora_tensors,
    snapshot,
    whole_file,
    write,
)

KEYS = list(whole_file()[0])
MUTATIONS = [
    drop,
    rename_module,
    rename_end,
    rename_adapter,
    lose_prefix,
    double_key,
    double_shape,
    transpose,
]
MUTATIONS += [put_nan, put_inf, empty, integers]


def test_the_file_itself_loads(tmp_path):
    tensors, settings = whole_file()
    report = load_adapter(Tiny(), write(tmp_path, tensors, settings))
    assert {row.key for row in report.rows} == set(tensors)
    assert report.warnings == ()


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_one_wrong_tensor(tmp_path, mutate):
    tried = 0
    for number, key in enumerate(KEYS):
        tensors, settings = whole_file()
        before_keys = set(tensors)
        mutate(tensors, key)
        if set(tensors) == before_keys and mutate is rename_adapter:
            continue  # a key without an adapter name
        tried += 1
        model = Tiny()
        before = snapshot(model)
        with pytest.raises(ShardloadError) as raised:
            load_adapter(model, write(tmp_path / str(number), tensors, settings))
        # A stored key that is absent is named as the file would, or as the model names the tensor.
        wrong = (set(tensors) - before_keys) or {key, key.removeprefix(PREFIX).replace(".base_layer", "")}
        message = str(raised.value)
        assert any(name in message for name in wrong), (mutate, key, message)
        assert "nearest module: " in message or mutate is integers, (mutate, key, message)
        assert isinstance(raised.value, (MismatchError, CorruptError, UnsupportedError))
        assert_unchanged(model, before)
    assert tried >= len(KEYS) - 6


def test_a_rank_that_contradicts_the_config(tmp_path):
    with pytest.raises(MismatchError, match="rank 8, the file 2"):
        load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), config(r=8)))


def test_sharded_tensors_that_were_not_gathered(tmp_path):
    tensors = {key: torch.empty(0) for key in lora_tensors(Tiny())}
    with pytest.raises(CorruptError, match="ZeRO-3"):
        load_adapter(Tiny(), write(tmp_path, tensors))
    flat = {key: value.view(-1) for key, value in lora_tensors(Tiny()).items()}
    with pytest.raises(MismatchError, match="sharded and not gathered"):
        load_adapter(Tiny(), write(tmp_path / "flat", flat))


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.both = nn.Bilinear(4, 4, 4)


def test_layers_that_no_lora_is_defined_for(tmp_path):
    tensors = {
        f"{PREFIX}both.lora_A.weight": torch.ones(2, 4, 3),
        f"{PREFIX}both.lora_B.weight": torch.ones(4, 2, 1),
    }
    with pytest.raises(UnsupportedError, match="both is a Bilinear"):
        load_adapter(Bilinear(), write(tmp_path, tensors))


def encoder_file(tmp_path, path, width=(8, 8)):
    tensors = {
        f"{PREFIX}{path}.lora_A.weight": torch.randn(2, width[0]),
        f"{PREFIX}{path}.lora_B.weight": torch.randn(width[1], 2),
    }
    return write(tmp_path, tensors)


def test_layers_whose_forward_is_never_called(tmp_path):
    encoder = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).eval()
    with pytest.raises(UnsupportedError, match="MultiheadAttention"):
        load_adapter(encoder, encoder_file(tmp_path / "a", "self_attn.out_proj"))
    folder = encoder_file(tmp_path / "b", "linear1")
    with pytest.raises(UnsupportedError, match="set_fastpath_enabled"):
        load_adapter(encoder, folder)
    x = torch.randn(1, 3, 8)
    plain = encoder(x)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        load_adapter(encoder, folder)
        with torch.no_grad():
            assert (encoder(x) - plain).abs().max() > 1e-3
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_a_forward_on_the_instance_would_hide_the_adapter(tmp_path):
    model = Tiny()
    model.layers[0].q.forward = model.layers[0].q.forward
    with pytest.raises(UnsupportedError, match="accelerate"):
        load_adapter(model, write(tmp_path, lora_tensors(model)))


def test_a_layer_with_lora_parts_of_its_own(tmp_path):
    model = Tiny()
    model.layers[0].q.lora_A = nn.Parameter(torch.ones(1))
    with pytest.raises(UnsupportedError, match="LoRA parts of its own"):
        load_adapter(model, write(tmp_path, lora_tensors(model)))


def test_one_layer_under_two_names(tmp_path):
    model = Tiny()
    model.layers[1].q = model.layers[0].q
    tensors = lora_tensors(Tiny())
    with pytest.raises(MismatchError, match="is adapted by"):
        load_adapter(model, write(tmp_path / "both", tensors))
    del tensors[f"{PREFIX}layers.1.q.lora_A.weight"], tensors[f"{PREFIX}layers.1.q.lora_B.weight"]
    report = load_adapter(model, write(tmp_path / "one", tensors))
    assert report.warnings == ("layers.0.q is the same layer as layers.1.q: all of them are adapted",)


def test_layers_that_the_adapter_was_made_for_and_the_file_lacks_are_a_warning(tmp_path):
    folder = write(tmp_path, lora_tensors(Tiny(), names=("q",)), config(target_modules=["q", "up"]))
    report = load_adapter(Tiny(), folder)
    assert report.warnings == ("target_modules names 2 layers that the file lacks: layers.0.up, layers.1.up",)


def test_a_match_reads_no_weight_and_leaves_the_model_alone(tmp_path):
    model = Tiny()
    before = snapshot(model)
    tensors = lora_tensors(model, ("q", "up"))
    tensors["base_model.model.no.such.lora_A.weight"] = torch.ones(2, 8)
    tensors["base_model.model.no.such.lora_B.weight"] = torch.ones(8, 2)
    content = read_content(open_adapter(write(tmp_path, tensors)))
    strict = match_adapter(model, content, strict=True)
    assert {found.path for found in strict.layers} == {f"layers.{n}.{w}" for n in (0, 1) for w in ("q", "up")}
    assert [fault.kind for fault in strict.faults] == ["unexpected"] * len(strict.faults)
    assert strict.faults
    lenient = match_adapter(model, content, strict=False)
    assert lenient.faults == []
    assert len(lenient.warnings) == len(strict.faults)
    assert_unchanged(model, before)


def test_a_block_in_place_of_a_layer_shows_another_base(tmp_path):
    """Such a path is no layer that a newer version might take: merging it with PEFT into this base fails too."""
    tensors = {
        f"{PREFIX}layers.0.lora_A.weight": torch.ones(2, 8),
        f"{PREFIX}layers.0.lora_B.weight": torch.ones(8, 2),
    }
    with pytest.raises(MismatchError, match="layers.0 is a Block, which holds layers and is none") as caught:
        load_adapter(Tiny(), write(tmp_path, tensors))
    assert "load it onto the base that it was trained on" in caught.value.cure
