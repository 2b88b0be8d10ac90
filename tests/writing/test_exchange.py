"""Exchange: after an error every file is where it was, and a kill at any step is completed by the next writer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardload import UnsafeError
from shardload.writing.exchange import Exchange, inside
from shardload.writing.journal import Journal

NAMES = ["config.json", "model-1.safetensors", "model.safetensors.index.json"]
KEY = NAMES[-1]


class Folder:
    """A target with the old files of a checkpoint, and a staging folder with the new ones."""

    def __init__(self, root: Path, names, *, old=True) -> None:
        self.names = names
        self.target, self.staging = root / "out", root / "out" / ".staging"
        self.staging.mkdir(parents=True)
        self.journal = self.open()
        for name in names:
            (self.staging / name).write_text(f"new {name}")
            self.journal.add(name, self.staging / name)
            if old:
                (self.target / name).write_text(f"old {name}")

    def open(self) -> Journal:
        return Journal(os.open(self.staging / "journal", os.O_RDWR | os.O_CREAT))

    def exchange(self) -> Exchange:
        return Exchange(self.staging, self.target, self.journal)

    def seen(self) -> list[str]:
        return [p.read_text().split()[0] if (p := self.target / name).exists() else "" for name in self.names]


class Killed(BaseException):
    pass


def stop_after(monkeypatch, steps, error):
    """Let `steps` moves happen, then raise instead of the next one; return how many are asked for."""
    count = iter(range(steps))
    move = Path.replace

    def moving(self, target):
        if next(count, None) is None:
            raise error
        return move(self, target)

    monkeypatch.setattr(Path, "replace", moving)


MOVES = 2 * len(NAMES)


@pytest.mark.parametrize("names", [NAMES, NAMES[-1:]])
def test_all_files_are_exchanged(tmp_path, names):
    folder = Folder(tmp_path, names)
    folder.exchange().run(names, replaces=True)
    assert folder.seen() == ["new"] * len(names)
    assert folder.journal.moving == []


@pytest.mark.parametrize("steps", range(MOVES))
def test_after_an_error_every_file_is_where_it_was(tmp_path, monkeypatch, steps):
    folder = Folder(tmp_path, NAMES)
    move = Path.replace
    stop_after(monkeypatch, steps, OSError(5, "the disk"))
    failing = Path.replace

    def moving(self, target):
        try:
            return failing(self, target)
        except OSError:
            monkeypatch.setattr(Path, "replace", move)  # it fails once, and the way back is free
            raise

    monkeypatch.setattr(Path, "replace", moving)
    with pytest.raises(OSError, match="the disk"):
        folder.exchange().run(NAMES, replaces=True)
    assert folder.seen() == ["old"] * 3
    assert all((folder.staging / name).read_text() == f"new {name}" for name in NAMES)


@pytest.mark.parametrize("steps", range(MOVES + 1))
def test_a_kill_at_any_step_leaves_no_mixture_and_is_recovered(tmp_path, monkeypatch, steps):
    folder = Folder(tmp_path, NAMES)
    with monkeypatch.context() as patch:
        patch.setattr(Exchange, "_back", lambda self, names: None)  # a killed process puts nothing back
        stop_after(patch, steps, Killed())
        if steps < MOVES:
            with pytest.raises(Killed):
                folder.exchange().run(NAMES, replaces=True)
        else:
            folder.exchange().run(NAMES, replaces=True)
    seen = folder.seen()
    assert not seen[-1] or len(set(seen)) == 1, "a reader finds a mixture"
    folder.journal = folder.open()
    folder.exchange().recover()
    assert folder.seen() == ["old" if steps == 0 else "new"] * 3


@pytest.mark.parametrize("steps", range(1, MOVES))
def test_a_killed_exchange_that_can_not_be_completed_is_undone(tmp_path, monkeypatch, steps):
    folder = Folder(tmp_path, NAMES)
    with monkeypatch.context() as patch:
        patch.setattr(Exchange, "_back", lambda self, names: None)
        stop_after(patch, steps, Killed())
        with pytest.raises(Killed):
            folder.exchange().run(NAMES, replaces=True)
    lost = next(folder.staging / name for name in reversed(NAMES) if (folder.staging / name).exists())
    lost.unlink()
    folder.journal = folder.open()
    folder.exchange().recover()
    assert folder.seen() == ["old"] * 3


def test_what_nobody_meant_to_replace_is_not_replaced_by_a_recovery(tmp_path):
    folder = Folder(tmp_path, NAMES, old=False)
    folder.journal.move(NAMES, replaces=False)
    (folder.target / "config.json").write_text("mine")
    folder.exchange().recover()
    assert folder.seen() == ["mine", "", ""]


def test_a_name_or_a_link_that_leads_out_is_refused(tmp_path):
    (tmp_path / "out" / "real").mkdir(parents=True)
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    assert inside(tmp_path / "out", "real/w") == tmp_path / "out" / "real" / "w"
    with pytest.raises(UnsafeError, match="link"):
        inside(tmp_path / "out", "link/w")
    for name in ("../w", "/w", "a/../../w"):
        with pytest.raises(UnsafeError):
            inside(tmp_path / "out", name)
