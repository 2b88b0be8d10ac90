"""Every tensor of a file is consumed exactly once, or the load raises, names key and module, and changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload.adapters import load_adapter
from shardload.errors import CorruptError, MismatchError, NotFoundError, ShardloadError, UnsupportedError
from tests.adapters.tiny import PREFIX, Tiny, assert_unchanged, config, lora_tensors, snapshot, write


def whole_file():
    """An adapter with every kind of tensor, and its settings."""
    model = Tiny()
    tensors = lora_tensors(model, rank=3)
    for key in list(tensors):
        if "lora_B" in key:
            tensors[key.replace(".weight", ".bias")] = torch.ones(len(tensors[key]))
    for n in (0, 1):
        tensors[f"{PREFIX}layers.{n}.up.base_layer.bias"] = torch.ones(12)
        tensors[f"{PREFIX}layers.{n}.down.base_layer.bias"] = torch.ones(8)
    tensors[f"{PREFIX}score.weight"] = torch.randn(3, 8)
    tensors[f"{PREFIX}score.bias"] = torch.ones(3)
    return tensors, config(r=3, bias="lora_only", lora_bias=True, modules_to_save=["score"])


KEYS = list(whole_file()[0])


def drop(tensors, key):
    del tensors[key]


def rename_module(tensors, key):
    tensors[key.replace("layers.", "blocks.").replace("score", "scores")] = tensors.pop(key)


def rename_end(tensors, key):
    tensors[key + "s"] = tensors.pop(key)


def rename_adapter(tensors, key):
    tensors[key.replace(".lora_B.", ".lora_B.other.").replace(".lora_A.", ".lora_A.other.")] = tensors.pop(
        key
    )


def lose_prefix(tensors, key):
    tensors[key.removeprefix(PREFIX)] = tensors.pop(key)


def double_key(tensors, key):
    tensors[key.replace(PREFIX, PREFIX + "_orig_mod.")] = tensors[key].clone()


def double_shape(tensors, key):
    tensors[key] = torch.cat([tensors[key], tensors[key]])


def transpose(tensors, key):
    value = tensors[key]
    tensors[key] = value.T.contiguous() if value.dim() == 2 else value[None]


def put_nan(tensors, key):
    tensors[key].view(-1)[-1] = float("nan")


def put_inf(tensors, key):
    tensors[key].view(-1)[0] = float("-inf")


def empty(tensors, key):
    tensors[key] = torch.empty(0)


def integers(tensors, key):
    tensors[key] = tensors[key].long()


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


def test_both_shapes_and_the_module_are_named(tmp_path):
    other = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(16, 8)})])})
    tensors = {k: v for k, v in lora_tensors(Tiny(), names=("q",)).items() if "layers.0" in k}
    with pytest.raises(MismatchError) as raised:
        load_adapter(other, write(tmp_path, tensors, config(base_model_name_or_path="org/base")))
    message = str(raised.value)
    assert (
        f"{PREFIX}layers.0.q.lora_A.weight: the shape does not fit (stored (2, 8), the model's is (2, 16))"
        in message
    )
    assert "nearest module: layers.0.q" in message
    assert "org/base" in message
    (fault,) = raised.value.report.faults
    assert (fault.kind, fault.stored_shape, fault.model_shape) == ("shape", (2, 8), (2, 16))


def test_all_faults_at_once(tmp_path):
    tensors = lora_tensors(Tiny())
    drop(tensors, f"{PREFIX}layers.0.q.lora_A.weight")
    rename_end(tensors, f"{PREFIX}layers.1.up.lora_B.weight")
    double_shape(tensors, f"{PREFIX}layers.1.down.lora_B.weight")
    with pytest.raises(MismatchError) as raised:
        load_adapter(Tiny(), write(tmp_path, tensors))
    assert {fault.kind for fault in raised.value.report.faults} == {"missing", "unexpected", "shape"}


def test_an_adapter_of_another_model_is_told_shortly(tmp_path):
    tensors = lora_tensors(Tiny())
    many = {
        key.replace("layers.0", f"h.{n}"): value.clone() for key, value in tensors.items() for n in range(30)
    }
    with pytest.raises(MismatchError) as raised:
        load_adapter(Tiny(), write(tmp_path, many))
    assert len(str(raised.value).splitlines()) < 20


def test_a_rank_that_contradicts_the_config(tmp_path):
    with pytest.raises(MismatchError, match="rank 8, the file 2"):
        load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), config(r=8)))


def test_flags_dropped_from_the_config_are_noticed(tmp_path):
    tensors, settings = whole_file()
    for flag in ("bias", "lora_bias", "modules_to_save"):
        less = {key: value for key, value in settings.items() if key != flag}
        with pytest.raises(MismatchError):
            load_adapter(Tiny(), write(tmp_path / flag, tensors, less))


def test_sharded_tensors_that_were_not_gathered(tmp_path):
    tensors = {key: torch.empty(0) for key in lora_tensors(Tiny())}
    with pytest.raises(CorruptError, match="ZeRO-3"):
        load_adapter(Tiny(), write(tmp_path, tensors))
    flat = {key: value.view(-1) for key, value in lora_tensors(Tiny()).items()}
    with pytest.raises(MismatchError, match="sharded and not gathered"):
        load_adapter(Tiny(), write(tmp_path / "flat", flat))


def test_entries_of_a_pickle_that_are_no_tensors(tmp_path):
    with pytest.raises(MismatchError, match="epoch: the entry is no tensor"):
        load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()) | {"epoch": 3}, form="bin"))


def test_no_config(tmp_path):
    with pytest.raises(NotFoundError, match="lora_alpha"):
        load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), False))


def test_no_adapter(tmp_path):
    (tmp_path / "readme.md").write_text("nothing")
    with pytest.raises(NotFoundError, match="holds no adapter"):
        load_adapter(Tiny(), tmp_path)


def test_a_truncated_file(tmp_path):
    folder = write(tmp_path, lora_tensors(Tiny()))
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CorruptError):
        load_adapter(Tiny(), folder)


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


def test_an_interrupted_attach_is_undone(tmp_path, monkeypatch):
    from shardload.adapters import attach

    model = Tiny()
    before = snapshot(model)
    adapt, calls = attach.adapt, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return adapt(*args)

    monkeypatch.setattr(attach, "adapt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_adapter(model, write(tmp_path, lora_tensors(model)))
    assert_unchanged(model, before)
