"""A file that is there is never called missing; a place that can't be written into is said, with what to do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import shardload
from shardload import AccessError, NotFoundError, ShardloadError, UsageError
from shardload._system.file_errors import is_absent, unreadable, unwritable, write_errors_said
from tests.tiny import Net, random_state, write_checkpoint

ABSENT = [errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG]
READING = {
    errno.EACCES: "E-ACCESS", errno.EPERM: "E-ACCESS", errno.EMFILE: "E-DESCRIPTORS", errno.ENFILE: "E-DESCRIPTORS",
    errno.EIO: "E-IO", errno.ESTALE: "E-IO", errno.ETIMEDOUT: "E-IO", errno.ENOMEM: "E-IO",
}  # fmt: skip
WRITING = {
    errno.ENOSPC: "E-SPACE", errno.EDQUOT: "E-SPACE", errno.EFBIG: "E-SPACE", errno.EROFS: "E-USAGE",
    errno.EACCES: "E-USAGE", errno.EPERM: "E-USAGE", errno.EMFILE: "E-DESCRIPTORS",
}  # fmt: skip


def error_of(number, name=None):
    return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize("number", ABSENT)
def test_only_what_is_absent_is_called_so(number):
    assert is_absent(error_of(number))
    assert type(unreadable("a/file", error_of(number))) is NotFoundError


@pytest.mark.parametrize("number", READING)
def test_what_is_there_is_said_to_be_there(number):
    found = unreadable("a/file", error_of(number))
    assert (type(found), found.code, found.where) == (AccessError, READING[number], "a/file")
    assert found.cure
    assert not is_absent(error_of(number))


@pytest.mark.parametrize("number", WRITING)
def test_a_place_that_takes_nothing(tmp_path, number):
    for name in (None, str(tmp_path / "file"), str(tmp_path.parent)):
        found = unwritable(tmp_path, error_of(number, name))
        assert found.code == WRITING[number]
        assert found.cure
    assert unwritable(tmp_path, error_of(number, "/another/place")) is None
    with pytest.raises(ShardloadError), write_errors_said(tmp_path):
        raise error_of(number)
    with pytest.raises(OSError, match="another"), write_errors_said(tmp_path):
        raise error_of(number, "/another/place")
    with pytest.raises(BrokenPipeError), write_errors_said(tmp_path):
        raise BrokenPipeError


# --- real files -----------------------------------------------------------------------------------------------------

PRELUDE = """
    import os, sys, resource, tempfile, secrets, shutil, json, torch, shardload, shardload.saving, shardload.writing
    import shardload.loading.fill, shardload.compare.verify, shardload.writing.convert, shardload.adapters
    from pathlib import Path
    from shardload.cli import run

    def say(call):
        try:
            call()
        except shardload.ShardloadError as error:
            print(type(error).__name__, error.code, str(error).splitlines()[0], "|", error.cure, sep="~")
        else:
            print("done")

    where = Path(sys.argv[1])
    for name in ("warm", "warm2"):  # what is imported late is imported now, while this user may read all
        shardload.save(torch.nn.Linear(2, 2), where / name)
        shardload.from_pretrained(where / name, model_class=lambda config: torch.nn.Linear(2, 2), config={})
        shardload.verify(where / name)
    big = lambda config=None: torch.nn.Linear(1000, 1000)
    def cast(**how):
        shardload.from_pretrained(where / "warm big", model_class=big, config={}, dtype="float16", **how)

    shardload.save(big(), where / "warm big")
    cast(spill=where)
    say(lambda: shardload.open_checkpoint(where / "nothing"))
"""
NOBODY = "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"


def child(where, code):
    """Run code in a process of its own and return what it said: [type, code, first line, cure] of each call."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(code), str(where)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line.split("~") for line in done.stdout.splitlines()][1:]


@pytest.fixture
def where(tmp_path):
    """A folder that every user may enter."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o001 == 0 and folder.owner() != "root":
            folder.chmod(folder.stat().st_mode | 0o011)
        elif folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o001)
    return tmp_path


def checkpoint(folder, shards=1):
    write_checkpoint(folder, random_state(Net(), torch.float32), shards=shards)
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_a_file_or_a_folder_that_this_user_may_not_read_is_not_called_missing(where, shards):
    for name in ("file", "unlisted", "closed", "index", "config", "linked"):
        checkpoint(where / name, shards)
    last = f"model-0000{shards}-of-0000{shards}.safetensors" if shards > 1 else "model.safetensors"
    (where / "file" / last).chmod(0)
    (where / "unlisted").chmod(0o711)
    (where / "closed").chmod(0)
    (where / "config" / "config.json").write_text("{}")
    (where / "config" / "config.json").chmod(0)
    hidden = where / "private"
    hidden.mkdir(mode=0o700)
    os.rename(where / "linked" / last, hidden / last)
    (where / "linked" / last).symlink_to(hidden / last)
    names = ["file", "unlisted", "closed", "config", "linked"]
    if shards > 1:
        (where / "index" / "model.safetensors.index.json").chmod(0)
        names.append("index")
    (where / "map.json").write_text("{}")
    (where / "sums").write_text("")
    for name in ("map.json", "sums"):
        (where / name).chmod(0)
    said = child(
        where,
        NOBODY
        + f"""
for name in {names}:
    say(lambda: shardload.open_checkpoint(where / name))
    say(lambda: shardload.from_pretrained(where / name, model_class=lambda c: torch.nn.Linear(2, 2), config={{}}))
say(lambda: shardload.KeyMap.of(where / "map.json"))
say(lambda: shardload.verify(where / "warm", sums=where / "sums"))
""",
    )
    assert len(said) == 2 * len(names) + 2
    for kind, code, what, _, cure in said:
        assert (kind, code) == ("AccessError", "E-ACCESS")
        assert "missing" not in what
        assert "permission" in cure


def test_many_shards_under_a_small_limit_of_descriptors(where):
    """The limit of macOS: nothing holds a descriptor between two reads, and none at all left is said."""
    checkpoint(where / "many", 4)
    state = {f"layers.{i}.weight": torch.full((2, 2), float(i)) for i in range(300)}
    write_checkpoint(where / "layers", state, shards=300)
    code = """
        hold = []
        def all_of_them():
            while True:
                try: hold.append(os.open("/dev/null", os.O_RDONLY))
                except OSError: break
        shardload.open_checkpoint(where / "layers").read("layers.7.weight")  # imports
        say(lambda: shardload.KeyMap.of(where / "nothing"))
        say(lambda: shardload.convert(where / "warm", where / "warm3"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        say(lambda: shardload.convert(where / "layers", where / "out", max_shard_size="1GB"))
        say(lambda: shardload.save(torch.nn.Linear(2, 2), where / "saved"))
        opened = shardload.open_checkpoint(where / "layers")
        all_of_them()
        say(lambda: opened.read("layers.7.weight"))
        say(lambda: shardload.open_checkpoint(where / "layers"))
        say(lambda: shardload.open_checkpoint(where / "layers" / "model-00001-of-00300.safetensors"))
        say(lambda: shardload.KeyMap.of(where / "sums"))
        say(lambda: shardload.save(torch.nn.Linear(2, 2), where / "none"))
        for one in hold: os.close(one)
        say(lambda: shardload.open_checkpoint(where / "layers"))
    """
    (where / "sums").write_text("")
    said = child(where, code)
    assert [line[0] for line in (*said[1:4], said[-1])] == ["done"] * 4
    for kind, code, what, _, cure in said[4:-1]:
        assert (kind, code) == ("AccessError", "E-DESCRIPTORS"), what
        assert "ulimit -n" in cure
    back = shardload.open_checkpoint(where / "out")
    assert all(torch.equal(back.read(name), tensor) for name, tensor in state.items())


@pytest.mark.parametrize("limit", [100, 100_000])
def test_a_file_that_becomes_larger_than_the_limit_of_this_user(where, limit):
    code = f"""
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        say(lambda: shardload.save(big(), where / "saved"))
        print(sorted(os.listdir(where)))
    """
    (kind, code, what, _, cure), *left = child(where, code)
    assert (kind, code) == ("NoSpaceError", "E-SPACE"), what
    assert "too large" in what
    assert "ulimit -f" in cure
    assert left == [["['warm', 'warm big', 'warm2']"]]


WRITERS = """
    say(lambda: shardload.save(torch.nn.Linear(2, 2), place))
    say(lambda: shardload.save(torch.nn.Linear(2, 2), place / "deep" / "deeper"))
    say(lambda: shardload.convert(where / "warm", place))
    say(lambda: cast(spill=place))
    from shardload._system.atomic_file import write_atomically
    say(lambda: write_atomically(place / "map.json", b"{}"))
    print(run(["trust", str(where / "code"), "--yes", "--lock", str(place / "some.lock")]))
"""


def code_repo(folder):
    from tests.remote_code.repos import tiny

    tiny(folder)


def test_a_folder_that_this_user_may_not_write_into(where):
    code_repo(where / "code")
    (where / "place").mkdir(mode=0o555)
    (where / "closed" / "place").mkdir(parents=True)
    (where / "closed").chmod(0o700)
    code = NOBODY + "place = where / 'place'" + textwrap.dedent(WRITERS)
    code += (
        "[say(lambda: shardload.save(big(), where / 'closed' / name)) for name in ('place', 'new/deep')]\n"
    )
    code += "say(lambda: cast(spill=where / 'closed' / 'place'))\nprint(2)\n"
    said = child(where, code)
    refused = [line for line in said if len(line) == 5]
    assert len(refused) == 8, said
    assert said[-1] == ["2"]
    for _, code, what, _, cure in refused:
        assert code == "E-USAGE"
        assert "can't be written into: Permission denied" in what
        assert "may write" in cure
    assert list((where / "place").iterdir()) == []


@pytest.mark.parametrize("way", ["ro", "size=64k"])
def test_a_disk_that_is_read_only_or_full(where, way):
    disk = where / "disk"
    disk.mkdir()
    code_repo(where / "code")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", way, "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a disk")
    try:
        if way != "ro":
            with pytest.raises(OSError, match="space"):
                (disk / "fill").write_bytes(bytes(1 << 20))
        said = child(where, "place = where / 'disk'\n" + textwrap.dedent(WRITERS))
    finally:
        subprocess.run(["umount", disk], check=True)
    refused = [line for line in said if len(line) == 5]
    kind = ("UsageError", "E-USAGE") if way == "ro" else ("NoSpaceError", "E-SPACE")
    assert [tuple(line[:2]) for line in refused] == [kind] * 5, said
    assert all(line[4] != "None" for line in refused)
    assert said[-1] == ["2"]


def test_where_nothing_can_be_made_no_other_writer_is_blamed():
    if not Path("/proc/self").exists():
        pytest.skip("no /proc on this system")
    with pytest.raises(UsageError, match="can't be written into"):
        shardload.save(Net(), "/proc/shardload-test/deep")
