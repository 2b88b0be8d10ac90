"""A load above its limit names the changes with which it fits, and no other: each is carried out here."""

from __future__ import annotations

import shlex

import pytest
import torch
from torch import nn

from shardload import (
    MemoryLimitError,
    OnDevice,
    build_shell,
    convert,
    from_pretrained,
    open_checkpoint,
    report_of,
)
from shardload.cli import run
from shardload.keymap import Cat, KeyMap
from shardload.loading.memory_cures import MemoryCures
from shardload.loading.plan import match
from tests.tiny import write_checkpoint

WIDTH = 2048
LIMIT = 41 * 10**6  # a load that maps takes 32 MB, one that computes 40 MB, beside its weights of 16 MB


class Two(nn.Module):
    def __init__(self, config=None):
        super().__init__()
        self.a = nn.Linear(WIDTH, WIDTH, bias=False)
        self.b = nn.Linear(WIDTH, WIDTH, bias=False)


class Joint(nn.Module):
    def __init__(self, config=None):
        super().__init__()
        self.ab = nn.Linear(WIDTH, 2 * WIDTH, bias=False)


def state(dtype=torch.bfloat16):
    return {f"{name}.weight": torch.ones(WIDTH, WIDTH, dtype=dtype) for name in "ab"}


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "stored", state(), config={})


def load(folder, model_class=Two, **options):
    return from_pretrained(folder, model_class=model_class, config={}, progress=False, **options)


def cure_of(folder, limit=LIMIT, **options):
    with pytest.raises(MemoryLimitError) as caught:
        load(folder, max_memory=limit, **options)
    return caught.value.cure


def test_a_cast_keeps_its_dtype_or_is_spilled(folder, tmp_path, monkeypatch):
    stored, spilled, converted = cure_of(folder, dtype="float32", limit=60 * 10**6).parts
    assert stored.keywords == {"dtype": "stored"}
    assert spilled.keywords == {"spill": ...}
    load(folder, max_memory=60 * 10**6, **stored.keywords)
    load(folder, max_memory=60 * 10**6, dtype="float32", spill=tmp_path)
    monkeypatch.chdir(tmp_path)
    _, command, _ = converted.split("`")
    assert run(shlex.split(command)[1:]) == 0
    load(tmp_path / "converted", max_memory=60 * 10**6, dtype="float32")


def test_a_copy_is_left_out(folder):
    assert cure_of(folder, copy=True) == "leave out copy=True, so that the files are mapped"
    load(folder, max_memory=LIMIT)


def test_changes_that_only_help_together_are_one_cure(folder, tmp_path):
    stored, spilled, converted = cure_of(folder, copy=True, dtype="float32").parts
    assert stored.keywords == {"dtype": "stored", "copy": True}
    assert spilled.keywords == {"spill": ..., "copy": True}
    load(folder, max_memory=LIMIT, dtype="stored")
    load(folder, max_memory=LIMIT, dtype="float32", spill=tmp_path)
    assert converted.keywords == {"copy": True}
    convert(folder, tmp_path / "new", dtype="float32")
    load(tmp_path / "new", max_memory=LIMIT, dtype="float32")


def test_a_file_with_unaligned_tensors_is_converted(tmp_path):
    path = tmp_path / "legacy.bin"
    torch.save(state(torch.float32), path, _use_new_zipfile_serialization=False)
    if report_of(load(path)).stated.mapped == 2 * 4 * WIDTH**2:
        pytest.skip("this torch's legacy file happens to be aligned")
    command = f"shardload convert {path} -o converted"
    assert cure_of(path) == f"convert the files first (`{command}`): the new ones are mapped"
    convert(path, tmp_path / "new")
    load(tmp_path / "new", max_memory=LIMIT)


def test_tensors_that_a_key_map_joins_are_joined_once_on_disk(folder, tmp_path):
    joined = KeyMap((Cat(("a.weight", "b.weight"), "ab.weight", 0),))
    cure = cure_of(folder, model_class=Joint, key_map=joined)
    assert cure.startswith("convert the files first with this key_map=…")
    assert cure.keywords == {"key_map": ...}
    convert(folder, tmp_path / "new", key_map=joined)
    load(tmp_path / "new", model_class=Joint, max_memory=LIMIT)


def test_where_nothing_helps_more_memory_is_wanted(folder):
    cure = cure_of(folder, limit=1000)
    assert cure.keywords.keys() == {"max_memory"}
    load(folder, **cure.keywords)


def test_rules_of_the_class_are_not_cured_by_a_conversion(folder):
    """Joins of a class's own rules are done at each load, whatever the files."""
    joined = KeyMap((Cat(("a.weight", "b.weight"), "ab.weight", 0),))
    shell, checkpoint = build_shell(Joint), open_checkpoint(folder)
    plan = match(shell, shell.tree, checkpoint, joined, OnDevice())
    for own_rules, keywords in ((False, {"key_map"}), (True, {"max_memory"})):
        cures = MemoryCures(plan, shell, checkpoint, (), OnDevice(), copy=False, own_rules=own_rules)
        assert cures.below(LIMIT).keywords.keys() == keywords
