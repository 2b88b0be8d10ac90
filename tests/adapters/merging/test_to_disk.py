"""merge_to_disk without an oracle: the formula, what is linked, what is declined."""

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
from tests.adapters.merging.disk import (
    BESIDE,
    CONFIG,
    assert_holds,
    base_of,
    merged_by_hand,
    refused,
)
from tests.adapters.tiny import Tiny, lora_tensors, write
from tests.hub_server import HubServer
from tests.tiny import write_checkpoint


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
    refused(tmp_path, packed, adapter, UnsupportedError, "fp8 without scales")
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


def test_a_merge_of_a_hub_repo_with_a_hub_adapter(tmp_path, monkeypatch):
    """The output is a folder of its own: files of the cache may be linked, and are never written into."""
    tensors = lora_tensors(Tiny())
    base = write_checkpoint(tmp_path / "base", Tiny(torch.float16).state_dict(), config={"a": 1})
    adapter = write(tmp_path / "adapter", tensors)
    merge_to_disk(base, adapter, tmp_path / "local")
    with HubServer(tmp_path / "hub") as hub:
        commit = hub.commit("me/base", base)
        hub.commit("me/lora", adapter)
        hub.use(monkeypatch, cache=tmp_path / "cache")
        report = merge_to_disk("me/base", "me/lora", tmp_path / "out")
    assert report.base == f"me/base@{commit}"
    cached = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    for path in (tmp_path / "local").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
        assert not (tmp_path / "out" / path.name).is_symlink()
    again = merge_to_disk("me/base", "me/lora", tmp_path / "offline", local_files_only=True)
    assert again.least_share == report.least_share
    assert all(path.read_bytes() == content for path, content in cached.items())
