"""A save over an older one, killed at every step: the old one, the new one, or nothing that loads; then it is whole."""

from __future__ import annotations

import json

import pytest

from tests.tiny import run_python

SAVES = """
import json, os, sys
from pathlib import Path
import torch
from shardload import ShardloadError, UsageError, convert, open_checkpoint, save
from shardload._system.file_identity import file_identity
from shardload.writing.staging import NAME
from tests.test_saving import numbered
from tests.writing.dying import flush_nothing, killed_at_every_step

flush_nothing()
root, kind = Path(sys.argv[1]), sys.argv[2]
each = 1 if "over" in kind else 3
size = 1500 if "sharded" in kind else "5GB"

def model(value):
    made = numbered(value)
    if "same settings" in kind:
        made.config = {"value": 0}
    return made

def write(value, folder):
    save(model(value), folder, max_shard_size=size)

def state(folder):
    try:
        checkpoint = open_checkpoint(folder)
    except ShardloadError as error:
        return type(error).__name__
    values = {float(v) for name in checkpoint.tensors for v in checkpoint.read(name).flatten()}
    if "same settings" not in kind:
        values.add(checkpoint.config["value"])
    assert len(values) == 1, values
    return values.pop()

prepare = (lambda folder: None) if "new" in kind else (lambda folder: write(1, folder))
for folder in killed_at_every_step(prepare, lambda folder: write(2, folder), root, each):
    found = {"killed": state(folder) if folder.exists() else "absent"}
    staged = {path.name: file_identity(path) for path in folder.glob(f"{NAME}/*.safetensors")}
    if "again" in kind:
        write(2, folder)
    elif "refused" in kind:
        # The next writer is one that may not replace anything.
        write(5, root / "source")
        try:
            convert(root / "source", folder, progress=False)
        except UsageError:
            pass
    else:
        write(3, folder)
    found["then"] = state(folder)
    found["names"] = sorted(os.listdir(folder))
    found["kept"] = [n for n, it in staged.items() if (folder / n).exists() and file_identity(folder / n) == it]
    print(json.dumps(found))
"""


def ends(tmp_path, kind):
    lines = [json.loads(line) for line in run_python(SAVES, str(tmp_path), kind).stdout.splitlines()]
    assert len(lines) > 15
    assert lines[-1]["killed"] == 2
    names = lines[-1]["names"]
    for line in lines:
        assert line["names"] == names, "nothing is left over"
    return lines


@pytest.mark.parametrize("size", ["single", "sharded"])
@pytest.mark.parametrize("settings", ["", "same settings"])
def test_over_an_older_save_there_is_never_a_mixture_and_the_next_save_mends_it(tmp_path, size, settings):
    lines = ends(tmp_path, f"over {size} {settings}")
    states = [line["killed"] for line in lines]
    assert states[0] == 1
    absent = {"NotFoundError"} if size == "sharded" or not settings else set()
    assert set(states) == {1, 2} | absent
    assert [line["then"] for line in lines] == [3] * len(lines)
    # With the same settings the next save is the same job in all that can be seen without reading the weights.
    assert not any(line["kept"] for line in lines)


@pytest.mark.parametrize("size", ["single", "sharded"])
def test_into_a_new_folder(tmp_path, size):
    lines = ends(tmp_path, f"{size} new")
    assert {line["killed"] for line in lines} == {"absent", "NotFoundError", 2}
    assert [line["then"] for line in lines] == [3] * len(lines)


def test_the_same_save_again_keeps_what_is_proven(tmp_path):
    lines = ends(tmp_path, "sharded again")
    assert [line["then"] for line in lines] == [2] * len(lines)
    assert max(len(line["kept"]) for line in lines) >= 3


def test_a_next_writer_that_is_refused_mends_it_too(tmp_path):
    lines = ends(tmp_path, "single refused")
    assert {line["then"] for line in lines} == {1, 2}


ADAPTERS = """
import json, os, sys
from pathlib import Path
import shardload
from shardload import NotFoundError, attach_lora, load_adapter, save_adapter
from tests.adapters.tiny import Tiny
from tests.writing.dying import flush_nothing, killed_at_every_step

flush_nothing()

def write(rank, folder):
    model = Tiny()
    attach_lora(model, rank, 8, ["q"], init=False)
    save_adapter(model, folder)

def rank(folder):
    try:
        (found,) = load_adapter(Tiny(), folder).ranks
        return found
    except NotFoundError:
        return None

runs = killed_at_every_step(lambda folder: write(2, folder), lambda folder: write(5, folder), Path(sys.argv[1]))
for folder in runs:
    found = {"killed": rank(folder)}
    write(3, folder)
    found |= {"then": rank(folder), "names": sorted(os.listdir(folder))}
    print(json.dumps(found))
"""


def test_an_adapter_is_never_half_of_another(tmp_path):
    lines = [json.loads(line) for line in run_python(ADAPTERS, str(tmp_path)).stdout.splitlines()]
    assert {line["killed"] for line in lines} == {2, 5, None}
    for line in lines:
        assert line["then"] == 3
        assert line["names"] == ["adapter_config.json", "adapter_model.safetensors"]


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from shardload import open_checkpoint, save
root = Path(sys.argv[1])

class Model(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(512, 512, bias=False) for _ in range(16))
        self.config = {"value": value}
        for parameter in self.parameters():
            parameter.data.fill_(value)

models = [Model(value) for value in range(8)]
size = sys.argv[2]
began = time.perf_counter()
save(models[0], root / "out", max_shard_size=size)
span = time.perf_counter() - began
random = random.Random(4)
for turn in range(40):
    child = os.fork()
    if child == 0:
        save(models[turn % 8], root / "out", max_shard_size=size)
        os._exit(0)
    time.sleep(random.uniform(0, 1.1) * span)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        checkpoint = open_checkpoint(root / "out")
    except Exception as error:
        print(type(error).__name__)
        continue
    values = {float(checkpoint.read(name).view(-1)[at]) for name in checkpoint.tensors for at in (0, -1)}
    print(*values, checkpoint.config["value"])
hidden = sum(path.stat().st_size for path in root.glob("out/.*/**/*") if path.is_file())
print(hidden / sum(p.nbytes for p in models[0].parameters()))
save(models[5], root / "out", max_shard_size=size)
print(sorted(path.name for path in (root / "out").iterdir() if path.name.startswith(".")))
"""


@pytest.mark.parametrize("size", ["5GB", "4MB"])
def test_killed_at_forty_moments_over_and_over(tmp_path, size):
    *moments, hidden, left = run_python(KILLS, str(tmp_path), size).stdout.splitlines()
    assert len(moments) == 40
    for moment in moments:
        if moment != "NotFoundError":
            weights, settings = moment.split()
            assert float(weights) == float(settings)
    assert float(hidden) < 2.01, "killed saves do not pile up: what one replaces and what it writes"
    assert left == "[]"
