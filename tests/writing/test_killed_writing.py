"""A writer that dies: killed at every step it takes, the output is whole or absent, and the next run completes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest
import torch

from shardload import NoSpaceError, UsageError, open_checkpoint
from shardload.writing import write_output
from shardload.writing.staging import NAME
from tests.tiny import Net, random_state, run_python, write_checkpoint
from tests.writing.dying import exchange
from tests.writing.outputs import copy_of, same_files

KILLED = """
import sys
from pathlib import Path
from shardload.writing import write_output
from tests.writing.dying import killed_at_every_step
from tests.writing.outputs import copy_of

base, out = Path(sys.argv[1]), Path(sys.argv[2])
write = lambda folder: write_output(folder, copy_of(base, {"head.weight", "embed.weight"}))
print(len(list(killed_at_every_step(lambda folder: None, write, out))))
"""


def test_killed_at_every_step(tmp_path):
    base = write_checkpoint(tmp_path / "base", random_state(Net(), torch.float16), shards=3, config={"a": 1})
    steps = int(run_python(KILLED, str(base), str(tmp_path)).stdout)
    assert steps > 30
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    whole = resumed = complete = 0
    for limit in range(1, steps):
        out = tmp_path / str(limit)
        if not out.exists():
            continue
        is_whole = (out / "model.safetensors.index.json").exists()
        if is_whole:
            whole += 1
            assert open_checkpoint(out).tensors.keys() == open_checkpoint(base).tensors.keys()
        if is_whole and not (out / NAME / ".journal").exists():
            # The journal goes last: nothing is left to do but to remove an empty folder.
            assert not (out / NAME).exists() or not list((out / NAME).iterdir())
            continue
        written = write_output(out, copy_of(base, {"head.weight", "embed.weight"}))
        if is_whole:
            complete += 1
            assert written.resumed == shards
        resumed += bool(written.resumed)
        same_files(base, out)
    assert whole >= 1
    assert resumed >= 5
    assert complete >= 2, "what was killed after its last file is told to be complete"


def test_another_output_after_a_kill_finds_the_first_one_whole(tmp_path):
    """What was killed while its files were moved in is completed by whoever comes next, who is refused then."""
    base = write_checkpoint(tmp_path / "base", random_state(Net(), torch.float16), shards=3, config={"a": 1})
    out = tmp_path / "out"
    child = os.fork()
    if child == 0:
        real, moved = os.replace, []

        def replace(source, target):
            if len(moved) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            moved.append(target)
            return real(source, target)

        exchange("replace", replace)
        write_output(out, copy_of(base, {"head.weight"}), job="one")
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert len(list(out.iterdir())) == 3
    with pytest.raises(UsageError, match="would replace"):
        write_output(out, copy_of(base), job="two")
    same_files(base, out)


def test_a_file_that_somebody_put_there_after_the_kill_is_not_replaced(tmp_path):
    base = write_checkpoint(tmp_path / "base", random_state(Net(), torch.float16), shards=3, config={"a": 1})
    out = tmp_path / "out"
    child = os.fork()
    if child == 0:
        exchange("replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        write_output(out, copy_of(base, {"head.weight"}))
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    (out / "config.json").write_text("mine")
    with pytest.raises(UsageError, match=r"would replace.*\n.*config\.json"):
        write_output(out, copy_of(base, {"head.weight"}))
    assert {path.name: path.read_text() for path in out.iterdir()} == {"config.json": "mine"}


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
