"""`shardload trust` and the commands that run what it approved, as people and as CI run them."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND
from tests.remote_code.repos import MODEL, tiny


@pytest.fixture
def repo(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("SHARDLOAD_LOCK", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    tiny(tmp_path / "repo", model="import os\n" + MODEL + "\ndef later():\n    os.system('id')\n")
    return tmp_path / "repo"


def test_without_a_terminal_it_shows_and_never_asks(repo, call_cli):
    done = call_cli("trust", repo)
    assert done.returncode == 4
    assert "modeling_tiny.py" in done.stdout
    assert "process  os.system  modeling_tiny.py:" in done.stdout
    assert "--yes" in done.stderr
    assert not os.path.exists("shardload.lock")


def test_approved_checked_changed(repo, call_cli):
    assert call_cli("trust", repo, "--yes").returncode == 0
    assert call_cli("trust", repo, "--check").returncode == 0
    assert call_cli("trust", repo).returncode == 0  # nothing is left to ask
    before = Path("shardload.lock").read_bytes()
    with (repo / "modeling_tiny.py").open("a") as file:
        file.write("\x1b[2J = 'new'\n".replace("\x1b", "# \x1b"))
    for arguments in (["--check"], []):
        done = call_cli("trust", repo, *arguments)
        assert done.returncode == 4
        assert r"+ # \x1b[2J = 'new'" in done.stdout
        assert "\x1b" not in done.stdout + done.stderr
    assert Path("shardload.lock").read_bytes() == before


def test_the_document_says_all_of_it_and_asks_nothing(repo, call_cli):
    done = call_cli("trust", repo, "--json")
    assert done.returncode == 0
    (code,) = json.loads(done.stdout)["code"]
    assert code["approved"] is False
    assert code["changes"] is None
    files = {file["name"]: file for file in code["files"]}
    assert files["configuration_tiny.py"]["imports"] == ["transformers"]
    assert [r["what"] for r in files["modeling_tiny.py"]["reaches"]] == ["os.system"]
    assert call_cli("trust", repo, "--json", "--check").returncode == 4
    assert call_cli("trust", repo, "--json", "--yes").returncode == 0
    assert json.loads(call_cli("trust", repo, "--json", "--check").stdout)["code"][0]["approved"] is True


def test_load_runs_what_the_lock_approves_and_no_more(repo, call_cli, tmp_path):
    import torch

    from tests.tiny import write_checkpoint

    write_checkpoint(repo, {"linear.weight": torch.ones(4, 4), "linear.bias": torch.ones(4)}, shards=1)
    refused = call_cli("load", repo, "--locked")
    assert refused.returncode == 2  # there is no lock file
    assert f"`shardload trust {repo}` writes one" in refused.stderr
    assert call_cli("trust", repo, "--yes", "--lock", tmp_path / "ci.lock").returncode == 0
    assert call_cli("load", repo, "--lock", tmp_path / "ci.lock").returncode == 0
    (repo / "modeling_tiny.py").write_text("raise SystemExit('ran')\n")
    done = call_cli("load", repo, "--lock", tmp_path / "ci.lock")
    assert done.returncode == 4
    assert "+ raise SystemExit('ran')" in done.stderr
    assert call_cli("load", repo, "--locked", "--trust-remote-code").returncode == 2


def test_a_repo_without_code_asks_nothing(tmp_path, call_cli):
    (tmp_path / "config.json").write_text("{}")
    done = call_cli("trust", tmp_path)
    assert done.returncode == 0
    assert "no code of its own" in done.stdout


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 4), (b"\n", 4)])
def test_at_a_terminal_it_asks_once(repo, answer, code):
    ours, theirs = pty.openpty()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NO_COLOR": "1"}
    child = subprocess.Popen(
        [*COMMAND, "trust", str(repo)], stdin=theirs, stdout=theirs, stderr=theirs, env=env
    )
    os.close(theirs)
    shown, answered, deadline = b"", False, time.monotonic() + 300
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            shown += piece
        if b"[y/N]" in shown and not answered:
            os.write(ours, answer)
            answered = True
    os.close(ours)
    assert child.wait(300) == code, shown.decode()
    assert shown.count(b"[y/N]") == 1
    assert b"Allow 2 files of" in shown
    assert os.path.exists("shardload.lock") == (code == 0)
