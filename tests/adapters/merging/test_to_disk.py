"""merge_to_disk without an oracle: the formula, what is linked, what is declined, what goes along."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

from shardload import (
    CorruptError,
    MismatchError,
    UnsupportedError,
    UsageError,
    build_shell,
    fill,
    from_pretrained,
    merge_to_disk,
    open_checkpoint,
)
from shardload.adapters.merging import change as change_module
from tests.adapters import tiny
from tests.adapters.tiny import Tiny
from tests.tiny import write_checkpoint

CONFIG = {"architectures": ["Tiny"], "torch_dtype": "float16", "vocab_size": tiny.VOCABULARY}
BESIDE = {"tokenizer.json": b"{}", "modeling_x.py": b"x = 1\n", "README.md": b"hello"}


def base_of(folder, dtype=torch.float16, shards=3, kind="safetensors", config=CONFIG, model=None):
    state = (Tiny(dtype) if model is None else model).state_dict()
    write_checkpoint(folder, state, shards=shards, kind=kind, config=config)
    for name, content in BESIDE.items():
        (folder / name).write_bytes(content)
    return folder


def merged_by_hand(state, tensors, scale, weight=1.0):
    """The formula, on whole tensors: one product, one sum in fp32, one rounding."""
    result = dict(state)
    for key, a in tensors.items():
        if key.endswith("lora_A.weight"):
            name = key.removeprefix(tiny.PREFIX).replace("lora_A.weight", "weight")
            b = tensors[key.replace("lora_A", "lora_B")]
            wide = torch.promote_types(torch.float32, result[name].dtype)
            delta = torch.mm(b.to(wide), a.to(wide)) * scale
            delta = delta if weight == 1.0 else delta * weight
            result[name] = (result[name].to(wide) + delta).to(state[name].dtype)
    return result


def assert_holds(folder, state):
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tensors.keys() == state.keys()
    for name, tensor in state.items():
        found = checkpoint.read(name)
        assert found.dtype == tensor.dtype, name
        assert torch.equal(found, tensor), name


@pytest.mark.parametrize("block", [192, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_formula(tmp_path, dtype, block, monkeypatch):
    monkeypatch.setattr(change_module, "BLOCK", block)
    base = base_of(tmp_path / "base", dtype)
    tensors = tiny.lora_tensors(Tiny())
    report = merge_to_disk(base, tiny.write(tmp_path / "lora", tensors), tmp_path / "out")
    assert_holds(tmp_path / "out", merged_by_hand(Tiny(dtype).state_dict(), tensors, 3.0))
    assert len(report.tensors) == 6
    for name in os.listdir(base):
        if name.endswith(".safetensors"):
            length = 8 + int.from_bytes((base / name).read_bytes()[:8], "little")
            assert (base / name).read_bytes()[:length] == (tmp_path / "out" / name).read_bytes()[:length]
    for name, content in {**BESIDE, "config.json": (base / "config.json").read_bytes()}.items():
        assert (tmp_path / "out" / name).read_bytes() == content
        assert not os.path.samefile(base / name, tmp_path / "out" / name)


def test_what_goes_along_and_what_does_not(tmp_path):
    base = base_of(tmp_path / "base")
    for name in ("code/part.py", "notes/a/b.txt"):
        (base / name).parent.mkdir(parents=True)
        (base / name).write_text(name)
    adapter = tiny.write(base / "adapter", tiny.lora_tensors(Tiny()))
    (base / "onnx").mkdir()
    (base / "onnx/model.onnx").write_bytes(b"x")
    (base / "onnx/settings.json").write_text("{}")
    (base / "adapter_config.json").write_text("{}")
    (base / ".git").mkdir()
    (base / ".git/config").write_text("secret")
    merge_to_disk(base, adapter, tmp_path / "out")
    found = {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    shards = {f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)} | {"model.safetensors.index.json"}
    assert found == {*BESIDE, *shards, "config.json", "code/part.py", "notes/a/b.txt"}


@pytest.mark.parametrize("kind", ["bin", "legacy"])
@pytest.mark.parametrize("shards", [1, 2])
def test_pickled_bases_become_safetensors(tmp_path, kind, shards):
    base = base_of(tmp_path / "base", kind=kind, shards=shards)
    tensors = tiny.lora_tensors(Tiny())
    merge_to_disk(base, tiny.write(tmp_path / "lora", tensors), tmp_path / "out")
    assert_holds(tmp_path / "out", merged_by_hand(Tiny(torch.float16).state_dict(), tensors, 3.0))
    names = {name for name in os.listdir(tmp_path / "out") if "safetensors" in name}
    assert len(names) == (1 if shards == 1 else shards + 1)
    assert not any(name.endswith(".bin") for name in os.listdir(tmp_path / "out"))


def test_untouched_shards_are_linked_and_the_rest_of_a_shard_is_copied(tmp_path):
    state = Tiny(torch.float16).state_dict()
    first = {key: value for key, value in state.items() if ".q." in key or "embed" in key}
    second = {key: value for key, value in state.items() if key not in first}
    base = tmp_path / "base"
    base.mkdir()
    weight_map = {}
    for name, part in (("a.safetensors", first), ("b.safetensors", second)):
        tiny.save_file(part, base / name)
        weight_map |= dict.fromkeys(part, name)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    tensors = tiny.lora_tensors(Tiny(), names=("q",))
    adapter = tiny.write(tmp_path / "lora", tensors)
    report = merge_to_disk(base, adapter, tmp_path / "out")
    assert_holds(tmp_path / "out", merged_by_hand(state, tensors, 3.0))
    size = (base / "b.safetensors").stat().st_size
    assert report.room.shared == size
    assert report.written.nbytes in (
        {"linked": size, "written": (base / "a.safetensors").stat().st_size},
        {"cloned": size, "written": (base / "a.safetensors").stat().st_size},
    )
    if "linked" in report.written.nbytes:
        assert os.path.samefile(base / "b.safetensors", tmp_path / "out/b.safetensors")
    merge_to_disk(base, adapter, tmp_path / "apart", link=False)
    assert not os.path.samefile(base / "b.safetensors", tmp_path / "apart/b.safetensors")
    assert_holds(tmp_path / "apart", merged_by_hand(state, tensors, 3.0))


def test_another_dtype(tmp_path):
    base = base_of(tmp_path / "base", torch.float16)
    tensors = tiny.lora_tensors(Tiny())
    merge_to_disk(base, tiny.write(tmp_path / "lora", tensors), tmp_path / "out", dtype="float32")
    wide = {key: value.float() for key, value in Tiny(torch.float16).state_dict().items()}
    assert_holds(tmp_path / "out", merged_by_hand(wide, tensors, 3.0))
    assert json.loads((tmp_path / "out/config.json").read_text()) == {**CONFIG, "torch_dtype": "float32"}
    total = sum(tensor.nbytes for tensor in wide.values())
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total


def test_shards_dealt_anew(tmp_path):
    base = base_of(tmp_path / "base")
    tensors = tiny.lora_tensors(Tiny())
    merge_to_disk(base, tiny.write(tmp_path / "lora", tensors), tmp_path / "out", max_shard_size=300)
    assert_holds(tmp_path / "out", merged_by_hand(Tiny(torch.float16).state_dict(), tensors, 3.0))
    sizes = [shard.nbytes for shard in open_checkpoint(tmp_path / "out").shards]
    assert len(sizes) > 3
    assert all(size <= 300 for size in sizes)


def test_several_adapters_add_up(tmp_path):
    base = base_of(tmp_path / "base", torch.float64)
    one, two = tiny.lora_tensors(Tiny()), tiny.lora_tensors(Tiny(), names=("q", "down"), seed=1)
    folders = [tiny.write(tmp_path / "one", one), tiny.write(tmp_path / "two", two)]
    report = merge_to_disk(base, [(folders[0], 0.5), folders[1]], tmp_path / "out")
    wanted = merged_by_hand(Tiny(torch.float64).state_dict(), one, 3.0, 0.5)
    wanted = merged_by_hand(wanted, two, 3.0)
    found = open_checkpoint(tmp_path / "out")
    for name, tensor in wanted.items():
        assert torch.allclose(found.read(name), tensor, rtol=1e-12), name
    assert {row.name: row.adapters for row in report.tensors}["layers.0.q.weight"] == 2


def test_biases_and_saved_modules_are_replaced(tmp_path):
    base = base_of(tmp_path / "base")
    tensors = tiny.lora_tensors(Tiny(), names=("q",))
    own = {"score.weight": torch.randn(tiny.CLASSES, tiny.WIDTH), "score.bias": torch.randn(tiny.CLASSES)}
    stored = {f"{tiny.PREFIX}{name}": value for name, value in own.items()}
    settings = tiny.config(modules_to_save=["score"])
    adapter = tiny.write(tmp_path / "lora", {**tensors, **stored}, settings)
    report = merge_to_disk(base, adapter, tmp_path / "out")
    wanted = merged_by_hand(Tiny(torch.float16).state_dict(), tensors, 3.0)
    assert_holds(tmp_path / "out", {**wanted, **{name: value.half() for name, value in own.items()}})
    assert {row.name: row.share for row in report.tensors}["score.weight"] is None


def test_a_bias_of_b(tmp_path):
    base = base_of(tmp_path / "base", torch.float32)
    tensors = tiny.lora_tensors(Tiny(), names=("up",))
    bias = {key.replace("A.weight", "B.bias"): torch.randn(tiny.HIDDEN) for key in tensors if "A.w" in key}
    adapter = tiny.write(tmp_path / "lora", {**tensors, **bias}, tiny.config(lora_bias=True))
    merge_to_disk(base, adapter, tmp_path / "out")
    wanted = merged_by_hand(Tiny().state_dict(), tensors, 3.0)
    for key, value in bias.items():
        name = key.removeprefix(tiny.PREFIX).replace("lora_B.bias", "bias")
        wanted[name] = wanted[name] + value * 3.0
    assert_holds(tmp_path / "out", wanted)
    biased = tiny.lora_tensors(Tiny(), names=("q",))  # q has no bias to add to
    extra = {key.replace("A.weight", "B.bias"): torch.randn(tiny.WIDTH) for key in biased if "A.w" in key}
    adapter = tiny.write(tmp_path / "none", {**biased, **extra}, tiny.config(lora_bias=True))
    with pytest.raises(UnsupportedError, match="has no bias"):
        merge_to_disk(base, adapter, tmp_path / "none-out")


def test_the_merged_checkpoint_is_loaded_like_any_other(tmp_path):
    base = base_of(tmp_path / "base", torch.float32)
    tensors = tiny.lora_tensors(Tiny(), names=("q", "up"))
    merge_to_disk(base, tiny.write(tmp_path / "lora", tensors), tmp_path / "out")
    model = from_pretrained(tmp_path / "out", model_class=lambda config: Tiny(), progress=False)
    wanted = tiny.by_hand(Tiny(), tensors, 3.0)
    assert torch.allclose(model(tiny.TOKENS), wanted, atol=1e-5)
    shell = build_shell(Tiny)
    assert fill(shell, open_checkpoint(tmp_path / "out")).loaded == len(Tiny().state_dict())


def small_delta(folder, factor=1e-3):
    tensors = tiny.lora_tensors(Tiny(), names=("up", "down"))
    return tiny.write(folder, {k: v * factor if "lora_B" in k else v for k, v in tensors.items()})


def test_the_share_that_survived(tmp_path):
    """Against the definition, on whole tensors; and the warning names what helps."""
    base = base_of(tmp_path / "base", torch.bfloat16)
    report = merge_to_disk(base, small_delta(tmp_path / "lora", 3e-4), tmp_path / "out")
    before, after = open_checkpoint(base), open_checkpoint(tmp_path / "out")
    wide = merge_to_disk(base, small_delta(tmp_path / "lora", 3e-4), tmp_path / "wide", dtype="float64")
    exact = open_checkpoint(tmp_path / "wide")
    for row in report.tensors:
        delta = exact.read(row.name).double() - before.read(row.name).double()
        arrived = after.read(row.name).double() - before.read(row.name).double()
        assert row.share == pytest.approx(((arrived * delta).sum() / delta.square().sum()).item(), rel=1e-2)
        relative = delta.norm() / before.read(row.name).double().norm()
        assert row.relative == pytest.approx(relative.item(), rel=1e-3)
    assert report.least_share < 0.9
    [warning] = [text for text in report.warnings if "survived" in text]
    assert 'dtype="float32"' in warning
    assert 'rounding="stochastic"' in warning
    assert f"{report.least_share:.2f}" in warning
    assert wide.least_share == pytest.approx(1.0, abs=1e-4)
    assert not [text for text in wide.warnings if "survived" in text]


def test_stochastic_rounding_keeps_the_delta_and_is_reproducible(tmp_path):
    model = nn.Sequential(nn.Linear(300, 400, bias=False)).bfloat16()
    base = write_checkpoint(tmp_path / "base", model.state_dict(), shards=1)
    random = torch.Generator().manual_seed(0)
    tensors = {
        f"{tiny.PREFIX}0.lora_A.weight": torch.randn(2, 300, generator=random),
        f"{tiny.PREFIX}0.lora_B.weight": torch.randn(400, 2, generator=random) * 1e-6,
    }
    adapter = tiny.write(tmp_path / "lora", tensors)
    nearest = merge_to_disk(base, adapter, tmp_path / "nearest")
    options = {"rounding": "stochastic"}
    report = merge_to_disk(base, adapter, tmp_path / "one", **options, seed=1)
    assert nearest.least_share < 0.5
    assert abs(report.least_share - 1) < 0.1
    merge_to_disk(base, adapter, tmp_path / "two", **options, seed=1)
    merge_to_disk(base, adapter, tmp_path / "three", **options, seed=2)
    one, two, three = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "two", "three"))
    assert one == two != three


@pytest.mark.parametrize("block", [1, 100, 4000, 1 << 20])
@pytest.mark.parametrize("shape", [(1,), (7,), (0, 3), (33, 5), (1000, 1), (4097, 3), (2, 5000), (64, 2, 2)])
def test_blocks_cover_a_tensor_once(shape, block, monkeypatch):
    monkeypatch.setattr(change_module, "BLOCK", block)
    blocks = list(change_module.row_blocks(shape))
    assert [row for rows in blocks for row in range(shape[0])[rows]] == list(range(shape[0]))
    sizes = [rows.stop - rows.start for rows in blocks]
    assert all(size > 0 for size in sizes)
    if len(sizes) > 1:
        assert min(sizes[:-1]) >= max(sizes) / 2
        assert sizes[-1] * 2 >= max(sizes) or max(sizes) <= 16


def refused(tmp_path, base, adapter, error, match, **options):
    with pytest.raises(error, match=match) as caught:
        merge_to_disk(base, adapter, tmp_path / "refused", **options)
    assert not (tmp_path / "refused").exists()
    return caught.value


def test_adapters_that_are_refused(tmp_path):
    base = base_of(tmp_path / "base")
    tensors = tiny.lora_tensors(Tiny())
    error = refused(
        tmp_path,
        base,
        tiny.write(tmp_path / "a", {k.replace("layers.1", "layers.7"): v for k, v in tensors.items()}),
        MismatchError,
        "disagree",
    )
    assert "layers.7" in str(error)
    broken = {k: v * torch.nan if k.endswith("0.q.lora_A.weight") else v for k, v in tensors.items()}
    refused(tmp_path, base, tiny.write(tmp_path / "b", broken), CorruptError, "can't be weights")
    large = {k: v * 1e4 for k, v in tensors.items()}
    error = refused(tmp_path, base, tiny.write(tmp_path / "c", large), CorruptError, "NaN or Inf in float16")
    assert "float32" in error.cure
    merge_to_disk(base, tiny.write(tmp_path / "c", large), tmp_path / "wide", dtype="float32")
    refused(tmp_path, base, [], UsageError, "no adapter")


def test_bases_that_are_refused(tmp_path):
    adapter = tiny.write(tmp_path / "lora", tiny.lora_tensors(Tiny()))
    quantised = base_of(tmp_path / "q", config={**CONFIG, "quantization_config": {"quant_method": "gptq"}})
    error = refused(tmp_path, quantised, adapter, UnsupportedError, r"quantised \(gptq\)")
    assert "full-precision" in error.cure
    model = Tiny()
    state = {
        key: value.to(torch.float8_e4m3fn) if key.endswith("q.weight") else value
        for key, value in model.state_dict().items()
    }
    packed = write_checkpoint(tmp_path / "p", state)
    refused(tmp_path, packed, adapter, UnsupportedError, "stored as F8_E4M3")
    good = base_of(tmp_path / "base")
    with pytest.raises(UsageError, match="the folder that it is made from"):
        merge_to_disk(good, adapter, good)
    refused(tmp_path, good, adapter, UsageError, "'up' is not known", rounding="up")


def test_a_convolution_with_groups_is_refused(tmp_path):
    conv = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    base = write_checkpoint(tmp_path / "base", conv.state_dict(), shards=1)
    tensors = {
        f"{tiny.PREFIX}0.lora_A.weight": torch.randn(2, 4, 3, 3),
        f"{tiny.PREFIX}0.lora_B.weight": torch.randn(6, 1, 1, 1),
    }
    error = refused(
        tmp_path, base, tiny.write(tmp_path / "lora", tensors), UnsupportedError, "can't be merged|can't"
    )
    assert "groups" in str(error)


@pytest.fixture
def square(tmp_path):
    """A square layer beside a transposed one: the headers tell that layers of this name are transposed."""

    def make(beside):
        state = {"h.0.c_proj.weight": torch.randn(6, 6), "h.0.c_proj.bias": torch.zeros(6), **beside}
        folder = write_checkpoint(tmp_path / f"base{len(beside)}", state, shards=1)
        tensors = {
            f"{tiny.PREFIX}h.0.c_proj.lora_A.weight": torch.randn(2, 6),
            f"{tiny.PREFIX}h.0.c_proj.lora_B.weight": torch.randn(6, 2),
        }
        return folder, state, tensors

    return make


@pytest.mark.parametrize("flag", [True, False])
def test_a_square_transposed_layer(tmp_path, square, flag):
    beside = {"h.1.c_proj.weight": torch.randn(24, 6), "h.1.c_proj.bias": torch.zeros(6)}
    base, state, tensors = square(beside)
    adapter = tiny.write(tmp_path / "lora", tensors, tiny.config(fan_in_fan_out=flag))
    merge_to_disk(base, adapter, tmp_path / "out")
    a, b = tensors.values()
    delta = (torch.mm(b, a) * 3.0).T
    wanted = {**state, "h.0.c_proj.weight": state["h.0.c_proj.weight"] + delta}
    assert_holds(tmp_path / "out", wanted)


def test_a_square_layer_of_which_nothing_tells(tmp_path, square):
    base, state, tensors = square({})
    adapter = tiny.write(tmp_path / "lora", tensors, tiny.config(fan_in_fan_out=True))
    error = refused(tmp_path, base, adapter, UnsupportedError, "which way round")
    assert "merge=True" in error.cure
    merge_to_disk(base, tiny.write(tmp_path / "plain", tensors), tmp_path / "out")
    a, b = tensors.values()
    wanted = {**state, "h.0.c_proj.weight": state["h.0.c_proj.weight"] + torch.mm(b, a) * 3.0}
    assert_holds(tmp_path / "out", wanted)
