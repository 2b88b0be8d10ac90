"""One writer at a time, through no link, with the modes of the umask: for save, save_adapter, convert and merge."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shardload import (
    UnsafeError,
    UsageError,
    attach_lora,
    convert,
    merge_to_disk,
    open_checkpoint,
    save,
    save_adapter,
)
from shardload.writing.staging import NAME
from tests.adapters.tiny import Tiny
from tests.tiny import Net, random_state, write_checkpoint


def adapted(rank=2):
    model = Tiny()
    attach_lora(model, rank, 8, ["q"])
    return model


@pytest.fixture
def writers(tmp_path):
    """Every public function that writes a folder, as functions of the folder."""
    base = write_checkpoint(tmp_path / "base", random_state(Net()), shards=2, config={"a": 1})
    save(Tiny(), tmp_path / "plain")
    save_adapter(adapted(), tmp_path / "lora")
    return {
        "save": lambda folder, **more: save(Net(), folder, **more),
        "save_adapter": lambda folder, **more: save_adapter(adapted(), folder, **more),
        "convert": lambda folder, **more: convert(base, folder, **{"progress": False, **more}),
        "merge": lambda folder, **more: merge_to_disk(
            tmp_path / "plain", tmp_path / "lora", folder, **{"progress": False, **more}
        ),
    }


KINDS = ["save", "save_adapter", "convert", "merge"]


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def oct_modes(folder):
    return {path.stat().st_mode & 0o777 for path in [folder, *folder.rglob("*")] if path.is_dir()}, {
        path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()
    }


# --- one writer ------------------------------------------------------------------------------------------------

HELD = """
import sys
from shardload import save
from tests.test_saving import numbered

def wait(progress):
    if progress.tensors == 1:
        print("writing", flush=True)
        sys.stdin.readline()

save(numbered(1), sys.argv[1], max_shard_size=1500, progress=wait)
"""


@pytest.mark.parametrize("there", [True, False])
def test_while_a_process_writes_every_other_writer_is_refused(tmp_path, writers, there):
    out = tmp_path / "out"
    if there:
        out.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HELD, str(out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == "writing\n"
        staged = listing(out)
        for kind in KINDS:
            with pytest.raises(UsageError, match="another writer is at work"):
                writers[kind](out)
            assert listing(out) == staged
        process.communicate("\n")
    assert process.returncode == 0
    checkpoint = open_checkpoint(out)
    assert all(bool((checkpoint.read(name) == 1).all()) for name in checkpoint.tensors)
    assert not [name for name in listing(out) if name.startswith(".")]


@pytest.mark.parametrize("first", ["save", "save_adapter", "convert"])
@pytest.mark.parametrize("second", KINDS)
def test_while_a_thread_writes_every_other_writer_is_refused(tmp_path, writers, first, second):
    out = tmp_path / "out"
    begun, go, ends = threading.Event(), threading.Event(), []

    def wait(_progress):
        begun.set()
        go.wait(30)

    def run():
        writers[first](out, progress=wait)
        ends.append("done")

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(30)
    with pytest.raises(UsageError, match="another writer is at work"):
        writers[second](out)
    go.set()
    thread.join()
    assert ends == ["done"]
    assert not [name for name in listing(out) if name.startswith(".")]


def test_many_writers_at_once_leave_one_whole_checkpoint(tmp_path):
    """They start and end at any moment of one another: each is done or refused, and what is there is of one of them."""
    code = """
import random, sys, threading, time
from shardload import UsageError, open_checkpoint, save
from tests.test_saving import numbered

done = []
def run(seed):
    chance = random.Random(seed)
    for _ in range(12):
        try:
            save(numbered(seed), sys.argv[1], max_shard_size=1500)
            done.append(seed)
        except UsageError as error:
            assert "another writer" in str(error), error
        time.sleep(chance.uniform(0, 0.02))

first = int(sys.argv[2])
threads = [threading.Thread(target=run, args=(seed,)) for seed in (first, first + 1)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(done))
"""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    out = tmp_path / "deep" / "out"
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, str(out), first],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for first in ("1", "3")
    ]  # fmt: skip
    answers = [process.communicate(timeout=200) for process in processes]
    assert [error for _, error in answers] == ["", ""]
    assert sum(int(done) for done, _ in answers) >= 4
    checkpoint = open_checkpoint(out)
    value = checkpoint.config["value"]
    assert all(bool((checkpoint.read(name) == value).all()) for name in checkpoint.tensors)
    assert not [name for name in listing(out) if name.startswith(".")]


def test_a_folder_that_another_writer_removes_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    folder = tmp_path / "out" / NAME
    folder.mkdir(parents=True)
    is_dir = Path.is_dir

    def removed_first(path):
        if path == folder:
            monkeypatch.undo()
            folder.rmdir()
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", removed_first)  # mkdir asks it after it has met the folder
    save(Tiny(), tmp_path / "out")
    assert Path.is_dir is is_dir
    assert open_checkpoint(tmp_path / "out").tensors


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / NAME).write_text("mine")
    with pytest.raises(UsageError, match="can't be written into"):
        save(Tiny(), tmp_path / "out")
    assert (tmp_path / "out" / NAME).read_text() == "mine"


def test_a_child_that_was_forked_while_a_save_went_on_does_not_hold_the_lock(tmp_path):
    children = []

    def fork(_progress):
        if not children:
            children.append(os.fork())
            if children == [0]:
                signal.pause()

    with pytest.raises(ZeroDivisionError):
        convert(
            write_checkpoint(tmp_path / "a", random_state(Net()), shards=2),
            tmp_path / "out",
            dtype="float16",
            max_shard_size=600,
            progress=lambda progress: fork(progress) or (progress.tensors < 3 or 1 / 0),
        )
    try:
        assert (tmp_path / "out" / NAME).exists()
        convert(tmp_path / "a", tmp_path / "out", dtype="float16", max_shard_size=600, progress=False)
    finally:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)


# --- links -----------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    (folder / "precious").write_text("five years")
    (folder / "deep" / "precious").write_text("five more")
    (folder / "model.safetensors").write_text("weights")
    yield folder
    assert listing(folder) == ["deep", "deep/precious", "model.safetensors", "precious"]
    assert (folder / "precious").read_text() == "five years"
    assert (folder / "deep" / "precious").read_text() == "five more"
    assert (folder / "model.safetensors").read_text() == "weights"


@pytest.mark.parametrize("kind", KINDS)
def test_a_staging_folder_that_is_a_link_is_refused(tmp_path, writers, outside, kind):
    out = tmp_path / "out"
    out.mkdir()
    (out / NAME).symlink_to(outside)
    with pytest.raises(UnsafeError, match=r"shardload-output .* is a link"):
        writers[kind](out)
    assert listing(out) == [NAME]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "entry", [".journal", "x", "model.safetensors", "adapter_model.safetensors", ".replaced"]
)
def test_links_inside_a_staging_folder_are_removed_or_refused(tmp_path, writers, outside, kind, entry):
    out = tmp_path / "out"
    (out / NAME).mkdir(parents=True)
    target = outside / "precious" if entry != ".replaced" else outside
    (out / NAME / entry).symlink_to(target)
    if entry == ".journal":
        with pytest.raises(UsageError, match="can't be written into"):
            writers[kind](out)
    else:
        writers[kind](out)
        assert not [name for name in listing(out) if name.startswith(".")]


@pytest.mark.parametrize("special", ["fifo", "folder", "file"])
def test_what_is_no_folder_or_no_file_at_the_staging_names_is_a_typed_error(tmp_path, special):
    out = tmp_path / "out"
    if special == "file":
        out.mkdir()
        (out / NAME).write_text("")
    else:
        (out / NAME).mkdir(parents=True)
        (os.mkfifo if special == "fifo" else os.mkdir)(out / NAME / ".journal")
    with pytest.raises(UsageError):
        save(Net(), out)


def test_a_weight_file_that_is_a_link_is_replaced_as_a_link(tmp_path, outside):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").symlink_to(outside / "model.safetensors")
    (out / "config.json").symlink_to(outside / "precious")
    model = Net()
    model.config = {"a": 1}
    save(model, out)
    assert not (out / "model.safetensors").is_symlink()
    assert open_checkpoint(out).config == {"a": 1}
    (out / "model.safetensors").unlink()
    (out / "model.safetensors").symlink_to(out / "nowhere")
    with pytest.raises(UsageError, match="would replace"):
        convert(write_checkpoint(tmp_path / "a", random_state(Net()), shards=1), out, progress=False)
    save(model, out)
    assert open_checkpoint(out).tensors


def test_a_folder_of_code_that_is_a_link_is_not_written_through(tmp_path, outside):
    """A hostile output folder: a link where the code has a folder, and a journal that would move files there."""
    base = write_checkpoint(tmp_path / "base", random_state(Net()), shards=1)
    (base / "deep").mkdir()
    (base / "deep" / "code.py").write_text("new")
    out = tmp_path / "out"
    out.mkdir()
    (out / "deep").symlink_to(outside / "deep")
    with pytest.raises(UnsafeError, match="deep in the output folder is a link"):
        convert(base, out, progress=False)
    assert listing(out) == ["deep"]
    (out / NAME / ".replaced" / "deep").mkdir(parents=True)
    (out / NAME / ".replaced" / "deep" / "evil").write_text("evil")
    (out / NAME / ".journal").write_text(
        '{"job": "x"}\n{"moving": ["deep/evil", "../outside/evil", "key"], "replaces": true}\n'
    )
    with pytest.raises(UnsafeError, match="deep in the output folder is a link|climbs out"):
        save(Net(), out)


def test_the_output_folder_may_be_a_link_to_a_folder(tmp_path, writers):
    for kind in KINDS:
        (tmp_path / f"real-{kind}").mkdir()
        (tmp_path / f"link-{kind}").symlink_to(tmp_path / f"real-{kind}")
        writers[kind](tmp_path / f"link-{kind}")
        assert listing(tmp_path / f"real-{kind}")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for kind in KINDS:
        with pytest.raises(UsageError, match="leads nowhere"):
            writers[kind](tmp_path / "dangling")


# --- modes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_are_those_of_the_umask(tmp_path, writers, mask):
    before = os.umask(mask)
    try:
        for kind in KINDS:
            writers[kind](tmp_path / "deep" / kind, **({} if "save" in kind else {"verify": False}))
            folders, files = oct_modes(tmp_path / "deep" / kind)
            assert folders == {0o777 & ~mask}
            assert files == {0o666 & ~mask}
    finally:
        os.umask(before)


def test_the_umask_of_the_process_is_never_touched(tmp_path, writers, monkeypatch):
    """Files that other threads make meanwhile would have the wrong mode."""

    def forbidden(_mask):
        raise AssertionError("umask was called")

    monkeypatch.setattr(os, "umask", forbidden)
    for kind in KINDS:
        writers[kind](tmp_path / kind)


# --- what is left over -----------------------------------------------------------------------------------------


def test_leftovers_of_any_writer_are_removed_by_the_next(tmp_path, writers):
    for kind in KINDS:
        out = tmp_path / kind
        (out / NAME / ".replaced" / "deep").mkdir(parents=True)
        (out / NAME / ".replaced" / "deep" / "x").write_bytes(b"x" * 1000)
        (out / NAME / "model.safetensors").write_bytes(b"x" * 1000)
        (out / NAME / ".journal").write_bytes(b'{"job": "another"}\n{"name": "model.saf')
        writers[kind](out)
        assert not [name for name in listing(out) if name.startswith(".")]


@pytest.mark.parametrize(
    "journal",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"null\n",
        b'{"job": 3}\n{"moving": 7, "replaces": true}\n',
        b'{"job": "x"}\n{"moving": [["a"], {}], "replaces": 1}\n',
        b'{"job": "x"}\n{"moving": ["/nowhere/x", "../y"], "replaces": true}\n',
        b'{"job": "x"}\n{"name": "m", "identity": "no"}\n',
        b'{"job": "x"}\n{"name": "m", "identity": [1, 2]}\n',
        b'{"job": "x"}\n{"moving": ["a"]}\n',
    ],
)
def test_a_journal_of_a_stranger_moves_nothing(tmp_path, journal):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / ".journal").write_bytes(journal)
    save(Net(), tmp_path)
    assert listing(tmp_path) == ["model.safetensors"]


def test_a_folder_that_may_not_be_written_into(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't be written into: Not a directory"):
        save(Net(), tmp_path / "file" / "deep")
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(UsageError, match="can't be written into: Permission denied"):
            save(Net(), tmp_path / "closed")
