import json

import pytest

from tests.hub_server import HubServer

SHARDS = [f"model-0000{number}-of-00007.safetensors" for number in range(1, 8)]


@pytest.fixture
def hub(tmp_path):
    with HubServer(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def commit(hub, small_repo):
    files = {
        path.relative_to(small_repo).as_posix(): path for path in small_repo.rglob("*") if path.is_file()
    }
    return hub.commit("org/demo", files)


def test_inspect_fetches_headers_only(hub, commit, tmp_path, run_cli):
    done = run_cli("inspect", "org/demo", "--json", **hub.env(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["revision"] == commit
    assert document["totals"]["nbytes"] == 43_538_464
    assert sum(hub.sent(shard) for shard in SHARDS) < 1_500_000
    assert not hub.fetched() & {"modeling_chatglm.py", "pytorch_model-00001-of-00007.bin"}


def test_code_from_the_hub_needs_its_commit_and_then_loads_offline_too(hub, commit, tmp_path, run_cli):
    environment = hub.env(tmp_path / "cache")
    trusted = ["load", "org/demo", "--trust-remote-code"]
    done = run_cli(*trusted, **environment)
    assert (done.returncode, done.stdout) == (4, "")
    assert f"--revision {commit}" in done.stderr or f"--revision '{commit}'" in done.stderr
    done = run_cli(*trusted, "--revision", commit, **environment)
    assert done.returncode == 0, done.stderr
    assert commit in done.stdout
    assert not any(name.endswith(".bin") for name in hub.fetched())
    hub.stop()
    done = run_cli(*trusted, "--revision", commit, "--offline", **environment)
    assert done.returncode == 0, done.stderr


def test_a_missing_repo_is_said_clearly(hub, commit, tmp_path, run_cli):
    done = run_cli("inspect", "org/nothing", **hub.env(tmp_path / "cache"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "org/nothing" in done.stderr
    assert "Traceback" not in done.stderr
