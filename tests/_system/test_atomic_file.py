"""Files are whole or absent: after a failure, after kill -9, and on a disk that is really full."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from shardload import NoSpaceError, UnsafeError, open_checkpoint, save
from shardload._system.atomic_file import write_atomically
from tests.tiny import Net


def test_the_new_content_takes_the_place_of_the_old_and_keeps_its_permissions(tmp_path):
    path = tmp_path / "f"
    write_atomically(path, b"one")
    assert path.read_bytes() == b"one"
    path.chmod(0o640)
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("lost", [False, True])
def test_a_link_is_refused_and_neither_it_nor_its_file_changes(tmp_path, lost):
    if not lost:
        (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(UnsafeError, match="is a link") as caught:
        write_atomically(tmp_path / "link", b"new")
    assert str(tmp_path / "real") in caught.value.cure
    assert os.readlink(tmp_path / "link") == "real"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["link", *([] if lost else ["real"])]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, call):
    path = tmp_path / "f"
    write_atomically(path, b"old")

    def fail(*_args: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (type(path), "replace")), fail)
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    """A rename before the flush is an empty file after a loss of power."""
    told = []
    fsync, replace = os.fsync, type(tmp_path).replace
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (
            told.append(os.readlink(f"/proc/self/fd/{getattr(fd, 'fileno', lambda: fd)()}")),
            fsync(fd),
        )[1],
    )
    monkeypatch.setattr(type(tmp_path), "replace", lambda s, t: (told.append("replace"), replace(s, t))[1])
    write_atomically(tmp_path / "f", b"x")
    temporary, renamed, folder = told
    assert os.path.dirname(temporary) == folder == str(tmp_path)
    assert renamed == "replace"


def test_killed_at_any_moment_it_is_the_old_file_or_the_new_one(tmp_path):
    code = """
import sys
from shardload._system.atomic_file import write_atomically
old, new = b"old" * 300_000, b"new" * 300_000
print("ready", flush=True)
while True:
    write_atomically(sys.argv[1], new)
    write_atomically(sys.argv[1], old)
"""
    path = tmp_path / "f"
    seen = set()
    for wait in (0, 0.001, 0.003, 0.005, 0.008, 0.013):
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        child.stdout.readline()
        try:
            child.wait(wait + 0.01)
        except subprocess.TimeoutExpired:
            child.kill()
        child.wait()
        child.stdout.close()
        seen.add(path.read_bytes() if path.exists() else b"")
    assert seen <= {b"", b"old" * 300_000, b"new" * 300_000}


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KB of its own, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("this user may not mount a disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def big(numbers: int) -> torch.nn.Module:
    return torch.nn.Linear(numbers, 1, bias=False)


def test_a_full_disk_is_said_before_it_happens_where_it_can_be_known(small_disk):
    with pytest.raises(NoSpaceError, match=r"4,000,\d\d\d bytes are to be written and .* are free") as caught:
        save(big(1_000_000), small_disk)
    assert caught.value.exit_code == 2
    with pytest.raises(NoSpaceError, match="are free"):
        write_atomically(small_disk / "f", bytes(300_000))
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_becomes_full_leaves_what_was_there(small_disk, monkeypatch):
    """Another process takes the room in between: the question before could not know it."""
    save(Net(), small_disk)
    before = {path.name: path.read_bytes() for path in small_disk.iterdir()}
    monkeypatch.setattr("shardload.writing.output_writer.require_space", lambda *_: None)
    monkeypatch.setattr("shardload._system.atomic_file.require_space", lambda *_: None)
    with pytest.raises(NoSpaceError, match="the disk became full"):
        save(big(1_000_000), small_disk)
    with pytest.raises(NoSpaceError, match="the disk became full"):
        write_atomically(small_disk / "f", bytes(300_000))
    assert {path.name: path.read_bytes() for path in small_disk.iterdir()} == before
    assert set(open_checkpoint(small_disk).tensors) == set(Net().state_dict())
