"""Ranks that read a shard of one name read the same file, by its size, its header and some of its pages.

Ranks as processes are in tests/_system/test_agreement.py; here two of them come one after the other.
"""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from shardload import build_shell, open_checkpoint, save
from shardload._system import file_sample
from shardload.errors import CorruptError, RanksError
from shardload.keymap import KeyMap
from shardload.loading import over_ranks
from shardload.loading.judge import Comparison
from shardload.placement.target import Target


class Said:
    """What ranks say of their files, one rank after the other."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}
        self.rank = 0

    def judging(self):
        return nullcontext()

    def first_to_say(self, key, value):
        return self.said.setdefault(key, value)


def net():
    return torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))


@pytest.fixture
def folders(tmp_path):
    save(net(), tmp_path / "0", max_shard_size="20kB")
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    return tmp_path / "0", tmp_path / "1"


def compare(*checkpoints):
    said = Said()
    for said.rank, checkpoint in enumerate(checkpoints):
        comparison = Comparison(build_shell(net), checkpoint, KeyMap(), Target())
        comparison.judge()
        over_ranks.require_same_files(said, comparison, None)
    return said.said


def spoiled(file, at):
    stored = bytearray(file.read_bytes())
    stored[at] ^= 1
    file.write_bytes(stored)


def test_copies_of_a_checkpoint_are_the_same_files(folders):
    assert len(compare(*map(open_checkpoint, folders))) == 3


@pytest.mark.parametrize("at", [-1, 9000])
def test_another_version_of_one_file_is_named_with_both_ranks(folders, at):
    file = sorted(folders[1].glob("*.safetensors"))[1]
    spoiled(file, at)
    with pytest.raises(RanksError, match=f"the {file.name} that this rank reads is not that of rank 0"):
        compare(*map(open_checkpoint, folders))


def test_a_repo_is_what_its_commit_says(folders):
    def at(folder, commit):
        checkpoint = open_checkpoint(folder)
        source = type("Pinned", (), {"revision": commit, "label": "org/name"})()
        return replace(checkpoint, source=source)

    compare(at(folders[0], "a" * 40), at(folders[1], "a" * 40))
    with pytest.raises(RanksError, match="not that of rank 0"):
        compare(at(folders[0], "a" * 40), at(folders[1], "b" * 40))


def test_a_file_that_changed_is_refused_as_the_load_would(folders):
    checkpoint = open_checkpoint(folders[0])
    file = sorted(folders[0].glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes())
    with pytest.raises(CorruptError):
        compare(checkpoint)


def test_a_large_file_costs_few_bytes(tmp_path, monkeypatch):
    read = []

    def pread(descriptor, length, offset):
        read.append(length)
        return pread_of_the_system(descriptor, length, offset)

    pread_of_the_system = file_sample.os.pread
    monkeypatch.setattr(file_sample.os, "pread", pread)
    one = tmp_path / "one"
    one.write_bytes(bytes(10**6))
    sample = file_sample.file_sample(one)
    assert sum(read) == 8 * 4096
    one.write_bytes(bytes(10**6 - 1) + b"1")
    assert file_sample.file_sample(one) != sample
    one.write_bytes(b"")
    assert json.dumps(file_sample.file_sample(one))  # nothing to look at is no error
