"""Code from the Hub, through the real client and a server on loopback."""

from __future__ import annotations

import json

import pytest

from shardload.checkpoint.sources import find_source
from shardload.errors import UntrustedCodeError
from shardload.remote_code import code_files, load_config
from shardload.where import CodeTrust, Where
from tests.hub_server import HubServer, forget_connections

from .repos import AUTO_MAP, CONFIG, MODEL, build, module_of


def files(revision: int) -> dict[str, bytes]:
    return {
        "config.json": json.dumps({"auto_map": AUTO_MAP}).encode(),
        "configuration_tiny.py": CONFIG.encode(),
        "modeling_tiny.py": f"{MODEL}\nREVISION = {revision}\n".encode(),
        "tokenization_tiny.py": b"raise SystemExit",
        "pytorch_model.bin": b"weights",
    }


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub") as server:
        server.use(monkeypatch, cache=tmp_path / "cache")
        yield server
        forget_connections()


CONFIG_JSON = {"auto_map": AUTO_MAP}


def test_two_commits_of_a_repo_run_side_by_side(hub):
    models = []
    for revision in (1, 2):
        commit = hub.commit("org/na-me.6b", files(revision))
        source, _ = find_source(Where("org/na-me.6b", commit))
        models.append(build(source, CONFIG_JSON, revision=commit))
    assert [module_of(model).REVISION for model in models] == [1, 2]
    assert models[0].config._commit_hash != models[1].config._commit_hash
    assert models[0].name_or_path == "org/na-me.6b"


def test_only_the_code_that_runs_is_fetched(hub):
    commit = hub.commit("org/name", files(1))
    source, _ = find_source(Where("org/name", commit))
    build(source, CONFIG_JSON, revision=commit)
    assert hub.fetched() == {"configuration_tiny.py", "modeling_tiny.py"}


def test_a_branch_is_refused_with_its_commit_and_the_files_are_listed(hub):
    commit = hub.commit("org/name", files(1))
    source, _ = find_source("org/name@main")
    with pytest.raises(UntrustedCodeError) as caught:
        load_config(source, CONFIG_JSON, CodeTrust(True, "main"))
    assert f"revision='{commit}'" in caught.value.cure
    assert [file.label for file in code_files(source, CONFIG_JSON)] == [f"org/name@{commit}"] * 2


def test_code_runs_offline_from_the_cache(hub, tmp_path):
    commit = hub.commit("org/name", files(3))
    source, _ = find_source(Where("org/name", commit))
    online = build(source, CONFIG_JSON, revision=commit)
    before = len(hub.requests)
    where = Where("org/name", commit, local_files_only=True)
    source, _ = find_source(where)
    offline = build(source, CONFIG_JSON, revision=commit, hub=where)
    assert type(offline) is type(online)
    assert len(hub.requests) == before


def test_code_of_another_repo_on_the_hub(hub):
    code = hub.commit("org/code", files(4))
    auto_map = {name: f"org/code--{value}" for name, value in AUTO_MAP.items()}
    commit = hub.commit("me/fine-tuned", {"config.json": b"{}"})
    source, _ = find_source(Where("me/fine-tuned", commit))
    with pytest.raises(UntrustedCodeError) as caught:
        load_config(source, {"auto_map": auto_map}, CodeTrust(True, commit))
    assert f"code_revision='{code}'" in caught.value.cure
    model = build(source, {"auto_map": auto_map}, revision=commit, code_revision=code)
    assert module_of(model).REVISION == 4
    assert str(code) in module_of(model).__file__
