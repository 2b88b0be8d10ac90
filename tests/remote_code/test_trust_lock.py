"""The lock file: these bytes run and no others, whatever branch, config or folder they come by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import shardload
from shardload import CorruptError, NotFoundError, UnsafeError, UntrustedCodeError
from shardload.checkpoint.json_file import read_config
from shardload.checkpoint.sources import find_source
from shardload.remote_code.review import review_code
from shardload.remote_code.trust_lock import TrustLock, lock_path
from tests.hub_server import HubServer, forget_connections
from tests.transformers_shim import vocabularies

from .repos import AUTO_MAP, CONFIG, MODEL, local, tiny, write

STEPS = [shardload.load_config, shardload.resolve_class]


pytestmark = pytest.mark.usefixtures("work")


def approve(where, path=None) -> Path:
    source, _ = find_source(where)
    path = lock_path(path)
    for review in review_code(source, read_config(source)):
        review.approve(path)
    return path


@pytest.fixture
def repo(tmp_path):
    tiny(tmp_path / "repo")
    return tmp_path / "repo"


# --- a folder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_only_what_the_lock_approves_runs(repo, step):
    with pytest.raises(NotFoundError, match=r"no lock file shardload\.lock") as caught:
        step(repo, trust_remote_code="locked")
    assert "shardload trust" in caught.value.cure
    approve(repo)
    assert step(repo, trust_remote_code="locked") is not None


def test_the_lock_may_be_named_by_its_path_or_by_the_environment(repo, tmp_path, monkeypatch):
    elsewhere = approve(repo, tmp_path / "ci.lock")
    assert type(shardload.load_config(repo, trust_remote_code=elsewhere)).__name__ == "TinyConfig"
    monkeypatch.setenv("SHARDLOAD_LOCK", str(elsewhere))
    assert type(shardload.load_config(repo, trust_remote_code="locked")).__name__ == "TinyConfig"


def test_changed_bytes_are_refused_with_a_diff_and_nothing_runs(repo, tmp_path):
    approve(repo)
    mark = tmp_path / "it-ran"
    path = repo / "modeling_tiny.py"
    path.write_text(
        MODEL.replace("        return Causal", f"        open({str(mark)!r}, 'w')\n        return Causal")
    )
    with pytest.raises(UntrustedCodeError, match="1 file differs") as caught:
        shardload.resolve_class(repo, trust_remote_code="locked")
    (change,) = caught.value.changes
    (hunk,) = change.hunks
    line = path.read_text().split("\n").index(f"        open({str(mark)!r}, 'w')") + 1
    assert (change.name, hunk.at, hunk.was_at, hunk.removed) == ("modeling_tiny.py", line, line, 0)
    assert hunk.added == (f"        open({str(mark)!r}, 'w')",)
    assert f"+         open({str(mark)!r}, 'w')" in caught.value.where
    assert not mark.exists()
    approve(repo)
    shardload.load_config(repo, trust_remote_code="locked")


def test_a_removed_line_and_a_changed_one_are_told_apart(repo):
    path = repo / "configuration_tiny.py"
    before = path.read_text()
    approve(repo)
    path.write_text(before.replace('    model_type = "tiny"\n', "").replace("hidden_size=4", "hidden_size=5"))
    with pytest.raises(UntrustedCodeError) as caught:
        shardload.load_config(repo, trust_remote_code="locked")
    removed, changed = caught.value.changes[0].hunks
    assert (removed.removed, removed.added) == (1, ())
    assert (changed.removed, changed.added) == (1, ("    def __init__(self, hidden_size=5, **kwargs):",))


def test_a_file_that_was_not_there_is_refused(repo):
    approve(repo)
    (repo / "extra.py").write_text("raise SystemExit('ran')\n")
    (repo / "configuration_tiny.py").write_text("from . import extra\n" + CONFIG)
    with pytest.raises(UntrustedCodeError, match="2 files differ") as caught:
        shardload.load_config(repo, trust_remote_code="locked")
    assert {change.name: change.is_new for change in caught.value.changes} == {
        "configuration_tiny.py": False,
        "extra.py": True,
    }


def test_what_changes_between_the_gate_and_the_import_does_not_run(repo, monkeypatch):
    """The bytes that were judged are the ones that run."""
    approve(repo)
    from shardload.remote_code import importer

    real = importer.require_trust

    def judged(*args, **keywords):
        real(*args, **keywords)
        (repo / "configuration_tiny.py").write_text("raise SystemExit('ran')")

    monkeypatch.setattr(importer, "require_trust", judged)
    assert type(shardload.load_config(repo, trust_remote_code="locked")).__name__ == "TinyConfig"


def test_a_folder_is_approved_by_its_bytes_wherever_it_lies(repo, tmp_path):
    approve(repo)
    repo.rename(tmp_path / "moved")
    assert shardload.load_config(tmp_path / "moved", trust_remote_code="locked").hidden_size == 4


def test_a_lock_that_came_with_the_checkpoint_approves_nothing(repo, monkeypatch):
    with pytest.raises(UnsafeError, match="approves nothing"):
        approve(repo, repo / "shardload.lock")
    approve(repo).rename(repo / "shardload.lock")
    with pytest.raises(UnsafeError, match="approves nothing"):
        shardload.load_config(repo, trust_remote_code=repo / "shardload.lock")
    monkeypatch.chdir(repo)
    for where in (".", repo):
        with pytest.raises(UnsafeError, match="approves nothing"):
            shardload.load_config(where, trust_remote_code="locked")


@pytest.mark.parametrize("word", ["Locked", "lock", "True", b"locked", ["locked"], "shardload.lock", 1])
def test_other_words_are_no_word(repo, word):
    approve(repo)
    with pytest.raises(UntrustedCodeError):
        shardload.load_config(repo, trust_remote_code=word)


def test_the_tokenizers_code_is_approved_with_the_models(tmp_path):
    folder = vocabularies.write(tmp_path / "tok", vocabularies.NEW)
    approve(folder)
    assert shardload.load_tokenizer(folder, trust_remote_code="locked").encode("a")
    path = folder / "tokenization_tiny.py"
    path.write_text("raise SystemExit('ran')\n" + path.read_text())
    with pytest.raises(UntrustedCodeError, match="1 file differs"):
        shardload.load_tokenizer(folder, trust_remote_code="locked")


def test_nothing_in_config_or_adapter_can_ask_for_the_lock(tmp_path):
    tiny(tmp_path / "repo")
    approve(tmp_path / "repo")
    config = {
        "auto_map": AUTO_MAP,
        "trust_remote_code": "locked",
        "allow_links": True,
        "lock": "shardload.lock",
    }
    (tmp_path / "repo" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UntrustedCodeError):
        shardload.load_config(tmp_path / "repo")


# --- a repo on the Hub ------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub") as server:
        server.use(monkeypatch, cache=tmp_path / "cache")
        yield server
        forget_connections()


def commit(hub, model=MODEL, name="org/name", more=b"", **config):
    files = {
        "config.json": json.dumps({"auto_map": AUTO_MAP, **config}).encode(),
        "configuration_tiny.py": CONFIG.encode(),
        "modeling_tiny.py": model.encode(),
        "notes.txt": more,
    }
    return hub.commit(name, files)


def test_an_approved_lock_stands_for_the_commit(hub):
    first = commit(hub)
    with pytest.raises(UntrustedCodeError, match="name the commit"):
        shardload.load_config("org/name", trust_remote_code=True)
    path = approve("org/name")
    assert json.loads(path.read_text())["approved"][0] == {
        "source": "org/name",
        "commit": first,
        "files": json.loads(path.read_text())["approved"][0]["files"],
    }
    for word in (True, "locked"):
        assert type(shardload.load_config("org/name", trust_remote_code=word)).__name__ == "TinyConfig"
        commit(hub, more=b"a newer commit with the same code")


@pytest.mark.parametrize("word", [True, "locked"])
def test_a_branch_that_moved_to_other_code_is_refused_with_the_diff(hub, word):
    first = commit(hub)
    approve("org/name")
    second = commit(hub, MODEL + "import os\nos.system('id')\n")
    with pytest.raises(UntrustedCodeError, match=f"at commit {first}") as caught:
        shardload.resolve_class("org/name", trust_remote_code=word)
    assert "+ os.system('id')" in caught.value.where
    assert f"revision={first!r}" in caught.value.cure
    assert shardload.resolve_class("org/name", trust_remote_code=word, revision=first)
    if word is True:  # the caller has named this very commit
        assert shardload.resolve_class("org/name", trust_remote_code=True, revision=second)
    else:
        with pytest.raises(UntrustedCodeError):
            shardload.resolve_class("org/name", trust_remote_code="locked", revision=second)


def test_an_approval_is_for_one_repo(hub):
    commit(hub)
    commit(hub, name="org/other")
    approve("org/name")
    with pytest.raises(UntrustedCodeError, match="approves no code of org/other"):
        shardload.load_config("org/other", trust_remote_code="locked")


def test_code_of_another_repo_is_an_approval_of_its_own(hub, work):
    code = commit(hub, name="org/code")
    hub.commit(
        "org/weights",
        {
            "config.json": json.dumps(
                {"auto_map": {k: f"org/code--{v}" for k, v in AUTO_MAP.items()}}
            ).encode()
        },
    )
    path = work / "shardload.lock"
    TrustLock(path).write()
    source, _ = find_source("org/weights")
    (review,) = review_code(source, read_config(source))
    assert review.source.label == f"org/code@{code}"
    with pytest.raises(UntrustedCodeError, match="approves no code of org/code"):
        shardload.load_config("org/weights", trust_remote_code="locked")
    review.approve(path)
    commit(
        hub, "raise SystemExit('ran')", name="org/code"
    )  # its main has moved on: the lock's commit is taken
    assert type(shardload.load_config("org/weights", trust_remote_code="locked")).__name__ == "TinyConfig"


def test_offline_with_the_lock(hub):
    commit(hub)
    approve("org/name")
    hub.stop()
    config = shardload.load_config("org/name", trust_remote_code="locked", local_files_only=True)
    assert type(config).__name__ == "TinyConfig"


# --- the file itself --------------------------------------------------------------------------------------------

GOOD = {"source": "a", "commit": None, "files": {"m.py": {"sha256": "0" * 64, "lines": "0" * 16}}}
BROKEN = {
    "no JSON": "{",
    "not UTF-8": b"\xff",
    "a list": "[]",
    "no version": json.dumps({"approved": []}),
    "another version": json.dumps({"version": 2, "approved": []}),
    "no approvals": json.dumps({"version": 1}),
    "a key twice": '{"version": 1, "version": 1, "approved": []}',
    "a file twice": json.dumps({"version": 1, "approved": [GOOD]}).replace('"m.py"', '"m.py": {}, "m.py"'),
    "a short hash": json.dumps({"version": 1, "approved": [GOOD]}).replace("0" * 64, "0" * 63),
    "a hash in capitals": json.dumps({"version": 1, "approved": [GOOD]}).replace("0" * 64, "A" * 64),
    "lines cut": json.dumps({"version": 1, "approved": [GOOD]}).replace(f'"{"0" * 16}"', '"0000"'),
    "a branch": json.dumps({"version": 1, "approved": [{**GOOD, "commit": "main"}]}),
    "a name that climbs": json.dumps({"version": 1, "approved": [GOOD]}).replace("m.py", "../m.py"),
    "a source that is a number": json.dumps({"version": 1, "approved": [{**GOOD, "source": 3}]}),
    "files in a list": json.dumps({"version": 1, "approved": [{**GOOD, "files": []}]}),
    "deeply nested": "[" * 100_000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_lock_is_one_typed_error_and_no_approval(repo, work, name):
    text = BROKEN[name]
    (work / "shardload.lock").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CorruptError, match=r"shardload\.lock is not a lock file"):
        shardload.load_config(repo, trust_remote_code="locked")


def test_a_lock_comes_back_as_it_was_written(repo, work):
    path = approve(repo)
    lock = TrustLock.read(path)
    lock.write()
    assert TrustLock.read(path) == lock
    assert [found.name for found in work.iterdir()] == [path.name]
    before = path.read_bytes()
    approve(repo)
    assert path.read_bytes() == before


def test_a_repo_without_code_needs_no_approval(tmp_path):
    source, config = write(tmp_path / "plain", {}, {"hidden_size": 3})
    assert review_code(source, config) == []
    assert review_code(local(tmp_path / "plain"), None) == []
