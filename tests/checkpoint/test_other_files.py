"""Folders without a checkpoint that shardload reads are named by what they hold, with a cure that works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as distributed

from shardload import NotFoundError, from_pretrained, open_checkpoint
from shardload.checkpoint.other_files import cure_by_names
from shardload.checkpoint.sources import FolderSource
from tests.tiny import save_safetensors, write_checkpoint

STATE = {"a": torch.ones(2), "b": torch.zeros(3)}


def refused(folder):
    with pytest.raises(NotFoundError) as caught:
        open_checkpoint(folder)
    return caught.value


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_distributed_checkpoint_is_made_one_file_by_the_printed_command(tmp_path):
    model = nn.Linear(4, 3)
    distributed.save({"model": model.state_dict(), "step": 3}, checkpoint_id=tmp_path / "saved here")
    (command,) = re.findall(r"`python (.*?)`", refused(tmp_path / "saved here").cure)
    made = subprocess.run(
        [sys.executable, *shlex.split(command)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    loaded = from_pretrained(tmp_path / "model.pt", model_class=lambda _: nn.Linear(4, 3), progress=False)
    assert torch.equal(loaded.weight, model.weight)


def test_files_of_llama_cpp_are_named(tmp_path):
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    assert "model-q4.gguf is a file of llama.cpp" in refused(tmp_path).cure
    assert cure_by_names(FolderSource(tmp_path), ["notes.txt"]) is None


@pytest.mark.parametrize(
    "half", ["model-00002-of-00002.safetensors.aria2", "b.incomplete", "model.safetensors.part"]
)
def test_a_download_that_stopped_is_run_again(tmp_path, half):
    write_checkpoint(tmp_path, STATE, shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    (tmp_path / half).write_bytes(b"")
    assert refused(tmp_path).cure.startswith(f"the download is not finished ({half}): run it again")


def test_links_of_a_snapshot_that_lead_to_nothing_are_a_download_that_stopped(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "absent")
    assert "the download is not finished (model.safetensors)" in refused(tmp_path).cure


def test_the_index_that_accelerate_names_in_its_own_way(tmp_path):
    for name, tensor in STATE.items():
        save_safetensors({name: tensor}, tmp_path / f"{name}.safetensors")
    text = '{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}'
    (tmp_path / "weight_map.index.json").write_text(text)
    assert set(open_checkpoint(tmp_path).tensors) == {"a", "b"}


@pytest.mark.parametrize("suffix", ["ckpt", "pt"])
def test_a_single_file_of_a_trainer_is_found(tmp_path, suffix):
    torch.save({"state_dict": STATE}, tmp_path / f"last.{suffix}")
    assert set(open_checkpoint(tmp_path).tensors) == {"a", "b"}
