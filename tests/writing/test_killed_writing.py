"""A writer that dies: killed at every step it takes, the output is whole or absent, and the next run completes it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys

import pytest
import torch

from shardload import NoSpaceError, UsageError, open_checkpoint
from shardload.writing import Output, SameFile, write_output
from shardload.writing.staging import NAME
from tests.tiny import Net, random_state, write_checkpoint
from tests.writing.test_write_output import copy_of, same_files

KILLED = """
import os, signal, sys
from pathlib import Path
from shardload.writing import Output, SameFile, write_output
from tests.writing.test_write_output import copy_of

base, out, steps = Path(sys.argv[1]), Path(sys.argv[2]), 0

def die_at(limit, module, name):
    call = getattr(module, name)
    def counted(*args, **options):
        global steps
        steps += 1
        if steps == limit:
            # Half of a write has reached the file: what a kill leaves.
            if name == "pwrite" and len(args[1]) > 1:
                call(args[0], args[1][: len(args[1]) // 2], args[2])
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)
    setattr(module, name, counted)

results = []
for limit in range(1, 500):
    child = os.fork()
    if child == 0:
        for name in ("pwrite", "copy_file_range", "fsync", "link", "mkdir", "unlink", "rmdir", "replace", "rename"):
            die_at(limit, os, name)
        write_output(out / str(limit), copy_of(base, {"head.weight", "embed.weight"}))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
print(limit)
"""


def test_killed_at_every_step(tmp_path):
    base = write_checkpoint(tmp_path / "base", random_state(Net(), torch.float16), shards=3, config={"a": 1})
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", KILLED, str(base), str(tmp_path)],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    assert steps > 30
    whole = resumed = 0
    for limit in range(1, steps):
        out = tmp_path / str(limit)
        if not out.exists():
            continue
        if (out / "model.safetensors.index.json").exists():
            whole += 1
            assert open_checkpoint(out).tensors.keys() == open_checkpoint(base).tensors.keys()
        if not (out / NAME / ".journal").exists() and (out / "model.safetensors.index.json").exists():
            # Killed after the last file was moved in: nothing is left to do but an empty folder.
            continue
        written = write_output(out, copy_of(base, {"head.weight", "embed.weight"}))
        resumed += bool(written.resumed)
        same_files(base, out)
    assert whole >= 1
    assert resumed >= 5


def test_another_job_starts_anew(tmp_path, monkeypatch):
    base = write_checkpoint(tmp_path / "base", random_state(Net(), torch.float16), shards=3, config={"a": 1})
    out = tmp_path / "out"
    monkeypatch.setattr("shardload.writing.staging.Staging.move_in", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_output(out, copy_of(base, {"head.weight"}), job="one")
    monkeypatch.undo()
    assert os.listdir(out) == [NAME]
    (out / NAME / "left.part").write_bytes(b"x" * 100)
    again = write_output(out, copy_of(base, {"head.weight"}), job="two")
    assert again.resumed == []
    assert again.cleaned > 100
    same_files(base, out)


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    base = write_checkpoint(tmp_path / "base", random_state(Net(), torch.float16), shards=3, config={"a": 1})
    out = tmp_path / "out"
    monkeypatch.setattr("shardload.writing.staging.Staging.move_in", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_output(out, copy_of(base, {"head.weight"}))
    monkeypatch.undo()
    journal = out / NAME / ".journal"
    with journal.open("a") as file:
        file.write('{"name": "model-00003-of-00003.safe')  # a line that a crash cut off
    finished = [json.loads(line)["name"] for line in journal.read_text().splitlines()[1:-1]]
    (out / NAME / finished[-2]).unlink()  # it may be a second name of the base's own file
    (out / NAME / finished[-2]).write_bytes(b"somebody else wrote this")
    again = write_output(out, copy_of(base, {"head.weight"}))
    assert again.resumed == [
        name for name in finished if name.endswith(".safetensors") and name != finished[-2]
    ]
    same_files(base, out)


def test_a_disk_that_becomes_full(tmp_path):
    """On a real disk of 512 KB; what was complete is kept, and the next run goes on from it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk")
    try:
        state = {f"w{n}": torch.randn(100, 500) for n in range(2)}  # 200 KB each
        base = write_checkpoint(tmp_path / "base", state, shards=2, config={"a": 1})
        out = disk / "out"

        def taking_the_room(progress):
            if progress.tensors == 1:
                (disk / "other").write_bytes(bytes(150_000))

        with pytest.raises(NoSpaceError, match="became full"):
            write_output(out, copy_of(base, set(state)), progress=taking_the_room)
        assert os.listdir(out) == [NAME]
        with pytest.raises(NoSpaceError, match=r"200,\d\d\d bytes are to be written"):
            write_output(out, copy_of(base, set(state)))
        (disk / "other").unlink()
        assert write_output(out, copy_of(base, set(state))).resumed == ["model-00001-of-00002.safetensors"]
        same_files(base, out)
    finally:
        subprocess.run(["umount", disk], check=True)


def _interrupted(self, names):
    raise KeyboardInterrupt


def test_two_writers_of_one_folder(tmp_path):
    base = write_checkpoint(tmp_path / "base", random_state(Net(), torch.float16), shards=1, config={"a": 1})
    (tmp_path / "out" / NAME).mkdir(parents=True)
    descriptor = os.open(tmp_path / "out" / NAME, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    weights = SameFile("model.safetensors", base / "model.safetensors")
    output = Output((weights,), beside={"config.json": base / "config.json"})
    with pytest.raises(UsageError, match="another process"):
        write_output(tmp_path / "out", output)
    assert (tmp_path / "out" / NAME).exists()
    os.close(descriptor)
    write_output(tmp_path / "out", output)
    same_files(base, tmp_path / "out")
