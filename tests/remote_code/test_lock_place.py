"""Where a lock file counts: never by what came with the code, always by what this user approved."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import shardload
from shardload import UnsafeError, UntrustedCodeError, UsageError
from shardload.checkpoint.json_file import read_config
from shardload.checkpoint.sources import find_source
from shardload.remote_code import lock_place
from shardload.remote_code.review import review_code
from shardload.remote_code.trust_lock import TrustLock
from tests.hub_server import HubServer, forget_connections

from .repos import AUTO_MAP, CONFIG, MODEL, tiny

LOCK = "shardload.lock"


pytestmark = pytest.mark.usefixtures("work")


def reviews_of(where):
    source, _ = find_source(where)
    return review_code(source, read_config(source))


def approve(where, path=LOCK) -> Path:
    for review in reviews_of(where):
        review.approve(Path(path))
    return Path(path)


def load(where, lock="locked", **keywords):
    return shardload.load_config(where, trust_remote_code=lock, **keywords).hidden_size


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repo whose author approved its code, as another user has it who copied it."""
    author = tmp_path / "author"
    tiny(author / "nested" / "model")
    with monkeypatch.context() as there:
        there.setenv("XDG_STATE_HOME", str(tmp_path / "author-state"))
        there.chdir(author)
        approve("nested/model")
    return Path(shutil.copytree(author, tmp_path / "clone"))


# --- a lock file that came with the code ------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["nested/model", "./nested/model/", "absolute", "link"])
def test_a_lock_in_a_folder_that_holds_the_code_approves_nothing(clone, tmp_path, monkeypatch, where):
    monkeypatch.chdir(clone)
    if where == "absolute":
        where = clone / "nested/model"
    elif where == "link":
        (tmp_path / "link").symlink_to(clone / "nested/model")
        where = tmp_path / "link"
    for lock in ("locked", Path(LOCK), clone / LOCK):
        with pytest.raises(UntrustedCodeError, match="may have come with it"):
            load(where, lock)
    monkeypatch.setenv("SHARDLOAD_LOCK", str(clone / LOCK))
    with pytest.raises(UntrustedCodeError, match="you approved nothing"):
        load(where)
    with pytest.raises(UnsafeError, match="approves nothing"):
        load(clone, subfolder="nested/model")


@pytest.mark.parametrize("marker", [".git", ".hg", ".cache/huggingface/download"])
@pytest.mark.parametrize("place", ["tools", "nested/other"])
def test_nor_does_one_elsewhere_in_the_same_repo(clone, monkeypatch, marker, place):
    (clone / marker).mkdir(parents=True)
    (clone / place).mkdir(parents=True)
    (clone / LOCK).rename(clone / place / LOCK)
    monkeypatch.chdir(clone / place)
    with pytest.raises(UntrustedCodeError, match="may have come with it"):
        load(clone / "nested/model")


def test_nor_a_link_in_the_users_folder_to_one_that_came_with_the_code(clone, work):
    (work / LOCK).symlink_to(clone / LOCK)
    with pytest.raises(UntrustedCodeError, match="may have come with it") as caught:
        load(clone / "nested/model")
    assert "shardload trust" not in caught.value.cure  # an approval in it would not count either


def test_nor_a_link_in_the_copied_repo_that_leads_out_of_it(clone, tmp_path, monkeypatch):
    """As in a snapshot of the Hub's cache, where a lock file is a link to its blob."""
    (clone / LOCK).rename(tmp_path / "blob")
    (clone / LOCK).symlink_to(tmp_path / "blob")
    monkeypatch.chdir(clone)
    with pytest.raises(UntrustedCodeError, match="may have come with it"):
        load("nested/model")


def test_nor_any_in_the_hubs_cache(clone, tmp_path, monkeypatch):
    snapshots = tmp_path / "hub" / "models--org--name" / "snapshots"
    (snapshots / ("1" * 40)).mkdir(parents=True)
    (snapshots / ("2" * 40)).mkdir()
    (clone / LOCK).rename(snapshots / ("2" * 40) / LOCK)
    monkeypatch.chdir(snapshots / ("2" * 40))
    with pytest.raises(UnsafeError, match="was downloaded"):
        load(clone / "nested/model")
    tiny(snapshots / ("1" * 40))
    with pytest.raises(UnsafeError, match="was downloaded"):
        approve(snapshots / ("1" * 40))


def test_nor_one_beside_a_copy_of_the_code_of_a_hub_repo(tmp_path, monkeypatch):
    """`git clone` of a repo on the Hub, which is then loaded by its name."""
    files = {
        "config.json": json.dumps({"auto_map": AUTO_MAP}).encode(),
        "configuration_tiny.py": CONFIG.encode(),
        "modeling_tiny.py": MODEL.encode(),
    }
    with HubServer(tmp_path / "hub") as server:
        server.use(monkeypatch, cache=tmp_path / "cache")
        server.commit("org/name", files)
        approve("org/name")
        assert load("org/name") == load("org/name", True) == 4
        shutil.rmtree(tmp_path / "state")
        assert load("org/name") == 4  # a program's lock file serves whoever runs the program
        for name, content in files.items():
            Path(name).write_bytes(content)
        for word in ("locked", True):
            with pytest.raises(UntrustedCodeError, match="may have come with it"):
                load("org/name", word)
        Path("scripts").mkdir()
        Path(".git").mkdir()
        Path(LOCK).rename(f"scripts/{LOCK}")
        monkeypatch.chdir("scripts")
        with pytest.raises(UntrustedCodeError, match="may have come with it"):
            load("org/name")
    forget_connections()


# --- the user's own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marker", [None, ".git"])
def test_a_project_with_a_model_in_it_is_approved_by_its_user(work, marker, monkeypatch):
    if marker:
        (work / marker).mkdir()
    tiny(work / "models/foo")
    approve("models/foo")
    assert load("models/foo") == load(work / "models/foo", work / LOCK) == 4
    (work / "scripts").mkdir()
    monkeypatch.chdir(work / "scripts")
    assert load("../models/foo", Path("..") / LOCK) == 4
    approve("../models/foo", f"../{LOCK}")
    with (work / "models/foo/modeling_tiny.py").open("a") as file:
        file.write("# more\n")
    with pytest.raises(UntrustedCodeError, match="1 file differs"):
        shardload.resolve_class(work / "models/foo", trust_remote_code=work / LOCK)


@pytest.mark.parametrize("cure", ["trust", "copy"])
def test_the_cures_work(clone, tmp_path, monkeypatch, cure):
    monkeypatch.chdir(clone)
    with pytest.raises(UntrustedCodeError) as caught:
        load("nested/model")
    if cure == "trust":
        assert "shardload trust nested/model" in caught.value.cure
        approve("nested/model")
        assert load("nested/model") == 4
    else:
        assert "copy it to a folder without the code" in caught.value.cure
        (tmp_path / "locks").mkdir()
        assert load("nested/model", Path(shutil.copy(LOCK, tmp_path / "locks" / "ci.lock"))) == 4


def test_a_note_is_for_one_place_and_for_these_bytes(clone, tmp_path, monkeypatch):
    monkeypatch.chdir(clone)
    approve("nested/model")
    assert load("nested/model") == 4
    shutil.copytree(clone, tmp_path / "again")
    monkeypatch.chdir(tmp_path / "again")
    with pytest.raises(UntrustedCodeError, match="may have come with it"):
        load("nested/model")


def test_an_approval_that_would_not_count_is_refused_before_anyone_is_asked(clone, tmp_path):
    for path in (clone / LOCK, clone / "nested" / LOCK, clone / "nested/model" / LOCK):
        before = path.read_bytes() if path.exists() else None
        with pytest.raises(UnsafeError):
            approve(clone / "nested/model", path)
        assert (path.read_bytes() if path.exists() else None) == before
    assert not (tmp_path / "state").exists()


def test_where_no_note_can_be_kept_it_is_said_if_one_is_needed(work, tmp_path, monkeypatch):
    (tmp_path / "state").write_text("a file")
    tiny(work / "model")
    with pytest.raises(UsageError, match="can't be noted for you") as caught:
        approve("model")
    assert "XDG_STATE_HOME" in caught.value.cure
    tiny(tmp_path / "elsewhere")
    approve(tmp_path / "elsewhere")
    assert load(tmp_path / "elsewhere") == 4


@pytest.mark.parametrize("state", ["state", "~/state"])
def test_notes_in_a_relative_folder_are_none(work, monkeypatch, state):
    """The copied repo could bring that folder."""
    tiny(work / "model")
    approve("model")
    assert load("model") == 4
    shutil.copytree(os.environ["XDG_STATE_HOME"], work / state)
    monkeypatch.setenv("XDG_STATE_HOME", state)
    with pytest.raises(UntrustedCodeError, match="may have come with it"):
        load("model")
    with pytest.raises(UsageError, match="no absolute path"):
        approve("model")


def test_check_says_that_the_lock_may_have_come_with_the_code(clone, monkeypatch, capsys):
    from shardload.cli import run

    monkeypatch.chdir(clone)
    assert run(["trust", "nested/model", "--check"]) == 4
    assert "may have come with it" in capsys.readouterr().err
    assert run(["trust", "nested/model", "--yes"]) == 0
    assert run(["trust", "nested/model", "--check"]) == 0


# --- the file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["there", "absent"])
def test_a_lock_that_is_a_link_is_not_written(work, tmp_path, target):
    tiny(tmp_path / "repo")
    other = tmp_path / "other"
    if target == "there":
        TrustLock(other).write()
    before = other.read_bytes() if other.exists() else None
    (work / LOCK).symlink_to(other)
    with pytest.raises(UnsafeError, match="is a link") as caught:
        approve(tmp_path / "repo")
    assert str(other) in caught.value.cure
    assert (work / LOCK).is_symlink()
    assert (other.read_bytes() if other.exists() else None) == before
    approve(tmp_path / "repo", other)
    assert load(tmp_path / "repo") == 4  # a link of the user's own is read


def test_what_is_no_readable_file_is_said(work, tmp_path):
    tiny(tmp_path / "repo")
    os.mkfifo(work / LOCK)
    with pytest.raises(UnsafeError, match="not a regular file"):
        load(tmp_path / "repo")
    (work / LOCK).unlink()
    (work / LOCK).mkdir()
    with pytest.raises(shardload.NotFoundError, match="[Ii]s a (directory|folder)"):
        load(tmp_path / "repo")


def test_approvals_at_the_same_time_are_all_kept(work, tmp_path):
    # Of other bytes each: a folder's code is approved wherever it lies.
    repos = [tiny(tmp_path / f"repo{i}", model=f"{MODEL}# {i}\n")[0].label for i in range(24)]
    reviews = [review for repo in repos[:16] for review in reviews_of(repo)]
    code = "import sys; from shardload.cli import run; sys.exit(max(run(['trust', w, '--yes']) for w in sys.argv[1:]))"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, *repos[start : start + 4]], stdout=subprocess.DEVNULL)
        for start in (16, 20)
    ]
    threads = [threading.Thread(target=review.approve, args=(Path(LOCK),)) for review in reviews]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in processes] == [0, 0]
    assert {approval.source for approval in TrustLock.read(Path(LOCK)).approvals} == set(repos)
    assert [path.name for path in work.iterdir()] == [LOCK]


def test_the_folders_are_judged_by_where_they_really_are(tmp_path, work):
    source, _ = find_source(Path(tiny(tmp_path / "repo")[0].label))
    (review,) = reviews_of(tmp_path / "repo")
    assert not lock_place.may_have_come(work / LOCK, source, review.code)
    assert lock_place.may_have_come(tmp_path / LOCK, source, review.code)
