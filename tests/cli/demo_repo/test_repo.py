import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from shardload.cli.demo_repo import SIZES, default_folder, repo, write_demo_repo
from shardload.errors import UsageError


def stored(folder, index):
    weight_map = json.loads((folder / index).read_text())["weight_map"]
    tensors = {}
    for shard in sorted({*weight_map.values()}):
        path = folder / shard
        held = load_file(path) if shard.endswith("safetensors") else torch.load(path, weights_only=True)
        assert {name for name, where in weight_map.items() if where == shard} == {*held}
        tensors |= held
    return tensors


def test_both_formats_hold_the_same_finite_weights(small_repo):
    bins = stored(small_repo, "pytorch_model.bin.index.json")
    safe = stored(small_repo, "model.safetensors.index.json")
    assert {name: tuple(tensor.shape) for name, tensor in bins.items()} == SIZES["small"].shapes
    assert bins.keys() == safe.keys()
    for name, tensor in bins.items():
        assert tensor.dtype == torch.float16
        assert tensor.isfinite().all()
        assert torch.equal(tensor, safe[name])
    layer = "transformer.encoder.layers.{}.self_attention.dense.weight"
    assert not torch.equal(bins[layer.format(0)], bins[layer.format(1)])


def test_files_of_a_real_repo_are_there(small_repo):
    names = {path.relative_to(small_repo).as_posix() for path in small_repo.rglob("*") if path.is_file()}
    assert {
        "config.json", "generation_config.json", "configuration_chatglm.py", "modeling_chatglm.py",
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
        "pytorch_model-00007-of-00007.bin", "model-00007-of-00007.safetensors",
    } <= names  # fmt: skip
    assert len(names) == 14 + 2 + 6 + 1
    config = json.loads((small_repo / "config.json").read_text())
    assert config["architectures"] == ["ChatGLMModel"]
    entry = "modeling_chatglm.ChatGLMForConditionalGeneration"
    assert config["auto_map"]["AutoModelForCausalLM"] == entry


def test_adapter_fits_every_attention_projection(small_repo):
    tensors = load_file(small_repo / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 6
    prefix = "base_model.model.transformer.encoder.layers.5.self_attention.query_key_value."
    assert tensors[prefix + "lora_A.weight"].shape == (8, 512)
    assert tensors[prefix + "lora_B.weight"].shape == (768, 8)
    assert all(tensor.abs().max() > 0 for tensor in tensors.values())


def test_two_writes_give_the_same_bytes(small_repo, tmp_path):
    again = write_demo_repo(tmp_path / "again", formats=["safetensors"])
    for name in repo.shard_names(SIZES["small"], "safetensors"):
        assert (again / name).read_bytes() == (small_repo / name).read_bytes()


def test_a_complete_repo_is_reused_and_a_damaged_one_rewritten(tmp_path):
    said = []
    folder = write_demo_repo(tmp_path / "repo", formats=["safetensors"], announce=said.append)
    write_demo_repo(folder, formats=["safetensors"], announce=said.append)
    assert len(said) == 1
    shard = folder / "model-00003-of-00007.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    write_demo_repo(folder, formats=["safetensors"], announce=said.append)
    assert len(said) == 2
    assert shard.read_bytes() == whole
    write_demo_repo(folder, announce=said.append)
    assert (folder / "pytorch_model-00001-of-00007.bin").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_progress_counts_to_the_total(tmp_path):
    steps = []
    write_demo_repo(tmp_path / "repo", formats=["bin"], progress=lambda *step: steps.append(step))
    assert [name for name, _, _ in steps] == [*repo.shard_names(SIZES["small"], "bin"), ""]
    assert steps[0][1] == 0
    assert steps[-1][1] == steps[-1][2] == SIZES["small"].nbytes


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="something else"):
        write_demo_repo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match="something else"):
        write_demo_repo(tmp_path / "thesis.txt")


def test_lack_of_room_is_said_in_numbers_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(UsageError, match=r"needs 12\.49 GB of disk and 1\.00 GB are free"):
        write_demo_repo(tmp_path / "repo", size="6b")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path):
    folder = write_demo_repo(tmp_path / "repo", formats=["safetensors"])
    (folder / "config.json").write_text("{}")

    def fail(name, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demo_repo(folder, formats=["safetensors"], progress=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]
    assert (folder / "config.json").read_text() == "{}"


def test_leftovers_of_a_killed_writer_are_swept(tmp_path):
    stale = tmp_path / ".repo.partial-dead"
    stale.mkdir()
    (stale / "shard").write_bytes(b"x")
    write_demo_repo(tmp_path / "repo", formats=["safetensors"])
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_two_writers_at_once_write_once(tmp_path):
    code = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "from shardload.cli.demo_repo import write_demo_repo\n"
        "write_demo_repo(sys.argv[1], formats=['safetensors'], announce=print)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "repo")]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [writer.communicate()[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sum(text.count("writing") for text in said) == 1


@pytest.mark.parametrize(("keywords", "name"), [({"size": "7b"}, "7b"), ({"formats": ["gguf"]}, "gguf")])
def test_unknown_sizes_and_formats_are_named(tmp_path, keywords, name):
    with pytest.raises(UsageError, match=name):
        write_demo_repo(tmp_path / "repo", **keywords)


def test_default_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("SHARDLOAD_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert default_folder() == Path("/a/demo-chatglm2-small")
    monkeypatch.delenv("SHARDLOAD_CACHE")
    assert default_folder("6b") == Path("/b/shardload/demo-chatglm2-6b")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert default_folder() == Path("/c/.cache/shardload/demo-chatglm2-small")
