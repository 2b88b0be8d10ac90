"""open_checkpoint and from_pretrained against a server that speaks the Hub's API, through the real client."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from shardload import (
    AccessError,
    CorruptError,
    MismatchError,
    NotFoundError,
    ShardloadError,
    UntrustedCodeError,
    UsageError,
    build_shell,
    check,
    fill,
    from_pretrained,
    load_adapter,
    load_config,
    open_checkpoint,
    report_of,
    resolve_class,
)
from shardload.checkpoint.sources import ranges
from shardload.errors import keywords_of
from tests.adapters import tiny as adapters
from tests.hub_server import HubServer, forget_connections
from tests.remote_code import repos
from tests.tiny import Net, assert_same_state, random_state, run_python, torch_filled, write_checkpoint

CONFIG = {"vocab": 6000}
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
INDEX = "model.safetensors.index.json"
ALL = {"config.json", INDEX, *SHARDS}


class Model(Net):
    def __init__(self, config) -> None:
        super().__init__(width=64, layers=2, vocab=config.vocab)


STATE = random_state(Model(type("Config", (), CONFIG)))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "RETRY_DELAYS", (0, 0, 0))
    with HubServer(tmp_path / "hub") as server:
        server.use(monkeypatch, cache=tmp_path / "cache")
        yield server
        forget_connections()


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "repo", STATE, config=CONFIG)


@pytest.fixture
def commit(hub, folder):
    """A repo with the weights in two formats, and files that nobody needs."""
    write_checkpoint(folder, STATE, kind="bin", shards=1)
    for name in ("README.md", "tokenizer.json", "flax_model.msgpack", "tf_model.h5"):
        (folder / name).write_bytes(b"x" * 1000)
    return hub.commit("org/model", folder)


@pytest.fixture
def oracle():
    return torch_filled(lambda: Model(type("Config", (), CONFIG)), STATE)


def weight_bytes(hub, folder):
    """The part of the weights that was sent."""
    return sum(map(hub.sent, SHARDS)) / sum((folder / name).stat().st_size for name in SHARDS)


# --- only what is needed ----------------------------------------------------------------------------------------


def test_a_load_fetches_config_index_and_safetensors_and_nothing_else(hub, folder, commit, oracle):
    model = from_pretrained("org/model", model_class=Model)
    assert_same_state(model, oracle)
    assert hub.fetched() == ALL
    assert 1 <= weight_bytes(hub, folder) < 1.1
    report = report_of(model)
    assert report.where == f"org/model@{commit}"
    assert report.revision == commit
    assert [row.name for row in report.shards] == SHARDS
    assert commit in str(report)


def test_headers_come_by_ranges(hub, folder, commit):
    checkpoint = open_checkpoint("org/model")
    assert {name: ref.shape for name, ref in checkpoint.tensors.items()} == {
        name: tuple(value.shape) for name, value in STATE.items()
    }
    assert checkpoint.config == CONFIG
    assert checkpoint.source.revision == commit
    assert hub.fetched() <= ALL
    assert weight_bytes(hub, folder) < 0.3
    assert check(build_shell(lambda: Model(type("Config", (), CONFIG))), checkpoint).ok
    assert weight_bytes(hub, folder) < 0.3


def test_some_rows_of_a_tensor_come_by_a_range(hub, folder, commit):
    checkpoint = open_checkpoint("org/model")
    before = sum(map(hub.sent, SHARDS))
    rows = checkpoint.read("embed.weight", (slice(4000, 4010), slice(None)))
    assert torch.equal(rows, STATE["embed.weight"][4000:4010])
    assert sum(map(hub.sent, SHARDS)) - before < 300_000 < STATE["embed.weight"].nbytes


def test_a_refusal_downloads_no_weight(hub, folder, commit):
    with pytest.raises(MismatchError) as caught:
        from_pretrained("org/model", model_class=lambda _config: Net())
    assert f"org/model@{commit}" in caught.value.where
    assert SHARDS[0] in str(caught.value)
    assert weight_bytes(hub, folder) < 0.3


def test_bin_where_there_is_nothing_better(hub, tmp_path, oracle):
    folder = write_checkpoint(tmp_path / "bin", STATE, kind="bin", config=CONFIG)
    hub.commit("org/bin", folder)
    assert_same_state(from_pretrained("org/bin", model_class=Model), oracle)
    assert hub.fetched() == {path.name for path in folder.iterdir()}


def test_a_subfolder_and_a_variant(hub, tmp_path):
    state = {key: value.half() if value.is_floating_point() else value for key, value in STATE.items()}
    root = tmp_path / "pipeline"
    write_checkpoint(root / "text", state, shards=1, config=CONFIG)
    (root / "text" / "model.safetensors").rename(root / "text" / "model.fp16.safetensors")
    write_checkpoint(root / "text", STATE, shards=1)
    write_checkpoint(root, {"other": torch.ones(1)}, shards=1, config={})
    hub.commit("org/pipeline", root)
    model = from_pretrained("org/pipeline", subfolder="text", variant="fp16", model_class=Model)
    assert model.head.weight.dtype == torch.float16
    assert hub.fetched() == {"text/config.json", "text/model.fp16.safetensors"}
    with pytest.raises(NotFoundError, match="variant 'int8'"):
        open_checkpoint("org/pipeline", subfolder="text", variant="int8")


def test_config_and_class_cost_no_weight(hub, commit):
    assert load_config("org/model").vocab == 6000
    assert hub.fetched() == {"config.json"}


# --- revisions --------------------------------------------------------------------------------------------------


def test_a_branch_that_moves(hub, folder, commit):
    first = open_checkpoint("org/model")
    newer = {key: value + 1 for key, value in STATE.items()}
    second = hub.commit("org/model", write_checkpoint(folder.parent / "newer", newer, config=CONFIG))
    for source, revision, state in [
        (first, None, STATE),
        (None, commit, STATE),
        (None, None, newer),
        (None, second, newer),
        (None, "main", newer),
    ]:
        checkpoint = source or open_checkpoint("org/model", revision=revision)
        assert torch.equal(checkpoint.read("head.weight"), state["head.weight"])


def test_a_repo_or_revision_that_is_not_there(hub, commit):
    with pytest.raises(NotFoundError, match="org/nothing"):
        from_pretrained("org/nothing", model_class=Model)
    with pytest.raises(NotFoundError, match="nowhere"):
        from_pretrained("org/model", revision="nowhere", model_class=Model)
    assert hub.fetched() == set()


def test_private_and_gated_repos(hub, folder):
    hub.commit("org/private", folder, token="hf_right")
    hub.commit("org/gated", folder, token="hf_right", gated=True)
    for name in ("org/private", "org/gated"):
        with pytest.raises(NotFoundError):
            from_pretrained(name, model_class=Model)
    with pytest.raises(AccessError):
        from_pretrained("org/gated", model_class=Model, token=False)
    assert hub.fetched() == set()
    for name in ("org/private", "org/gated"):
        assert from_pretrained(name, model_class=Model, token="hf_right").head.weight.shape == (6000, 64)


# --- the cache --------------------------------------------------------------------------------------------------


def test_the_second_load_needs_no_network(hub, commit, oracle):
    from_pretrained("org/model", model_class=Model)
    hub.stop()
    for keywords in ({}, {"revision": "main"}, {"revision": commit}):
        model = from_pretrained("org/model", model_class=Model, local_files_only=True, **keywords)
        assert_same_state(model, oracle)
        assert report_of(model).revision == commit
    assert load_config("org/model", local_files_only=True).vocab == 6000


def test_offline_by_the_environment_in_a_process_of_its_own(hub, tmp_path, commit):
    from_pretrained("org/model", model_class=Model)
    requests = len(hub.requests)
    code = """
import sys; sys.path.insert(0, ".")
from shardload import from_pretrained, report_of
from tests.test_load_hub import Model
print(report_of(from_pretrained("org/model", model_class=Model)).revision)
"""
    done = run_python(code, env=hub.env(tmp_path / "cache", HF_HUB_OFFLINE="1"))
    assert done.stdout.strip() == commit
    assert len(hub.requests) == requests


def test_offline_without_the_files_says_so(hub, commit):
    with pytest.raises(NotFoundError, match="cache"):
        from_pretrained("org/model", model_class=Model, local_files_only=True)
    assert hub.requests == []


def test_a_second_load_with_the_network_downloads_nothing_again(hub, folder, commit):
    for _ in range(2):
        from_pretrained("org/model", model_class=Model)
    assert weight_bytes(hub, folder) < 1.1


# --- what breaks on the way -------------------------------------------------------------------------------------


def test_a_download_that_is_cut_goes_on_where_it_stopped(hub, folder, commit, oracle):
    large = open_checkpoint("org/model").tensors["head.weight"].shard
    hub.fault("org/model", large, cut=400_000, times=2)
    assert_same_state(from_pretrained("org/model", model_class=Model), oracle)
    assert weight_bytes(hub, folder) < 1.6


def test_a_download_that_never_ends_is_typed_and_a_later_load_goes_on(hub, folder, commit, oracle):
    checkpoint = open_checkpoint("org/model")
    large = checkpoint.tensors["head.weight"].shard
    hub.fault("org/model", large, cut=10)
    model = Model(type("Config", (), CONFIG))
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    with pytest.raises(ShardloadError) as caught:
        fill(model, checkpoint)
    assert large in str(caught.value)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    hub.heal()
    fill(model, checkpoint)
    assert_same_state(model, oracle)


def test_a_shard_that_the_repo_lacks_is_told_before_anything_is_built(hub, folder):
    def make(_config):
        raise AssertionError("the constructor ran")

    (folder / SHARDS[1]).unlink()
    hub.commit("org/holes", folder)
    with pytest.raises(NotFoundError, match="1 of 3 shards are missing"):
        from_pretrained("org/holes", model_class=make)
    assert not set(SHARDS) & hub.fetched()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_fails_at_a_shard_is_typed(hub, commit, status):
    hub.fault("org/model", SHARDS[0], status=status)
    with pytest.raises(ShardloadError) as caught:
        from_pretrained("org/model", model_class=Model)
    assert SHARDS[0] in str(caught.value)


def test_a_page_in_place_of_a_shard(hub, folder):
    (folder / SHARDS[0]).write_bytes(b"<!DOCTYPE html><html><body>please log in</body></html>")
    hub.commit("org/page", folder)
    with pytest.raises(CorruptError, match="HTML"):
        from_pretrained("org/page", model_class=Model)


# --- code of the repo -------------------------------------------------------------------------------------------


@pytest.fixture
def code(hub, tmp_path):
    """A repo with code of its own; returns its commit."""
    folder = tmp_path / "code"
    repos.write(
        folder,
        {"configuration_tiny.py": repos.CONFIG, "modeling_tiny.py": repos.MODEL},
        {"auto_map": repos.AUTO_MAP, "hidden_size": 4},
    )
    write_checkpoint(folder, {"linear.weight": torch.ones(4, 4), "linear.bias": torch.ones(4)}, shards=1)
    return hub.commit("org/code", folder)


def test_code_of_the_hub_runs_at_the_commit_that_was_named(hub, code):
    model = from_pretrained("org/code", trust_remote_code=True, revision=code)
    assert type(model).__name__ == "TinyModel"
    assert torch.equal(model.linear.weight, torch.ones(4, 4))
    assert report_of(model).remote_base == "shim"
    assert hub.fetched() == {
        "config.json",
        "configuration_tiny.py",
        "modeling_tiny.py",
        "model.safetensors",
    }


def test_the_commit_may_stand_in_the_name(hub, code):
    where = f"org/code@{code}"
    assert type(from_pretrained(where, trust_remote_code=True)).__name__ == "TinyModel"
    assert type(load_config(where, trust_remote_code=True)).__name__ == "TinyConfig"
    assert resolve_class(where, trust_remote_code=True)(load_config(where, trust_remote_code=True))


@pytest.mark.parametrize("where", ["org/code", "org/code@main"])
@pytest.mark.parametrize("revision", [None, "main"])
def test_a_branch_is_no_commit_and_the_error_prints_the_one_to_pass(hub, code, where, revision):
    for step in (from_pretrained, load_config, resolve_class):
        with pytest.raises(UntrustedCodeError) as caught:
            step(where, trust_remote_code=True, revision=revision)
        named = f"org/code@{code}" if "@" in where else f"revision={code!r}"
        assert named in caught.value.cure


@pytest.mark.parametrize("revision", [None, "commit"])
def test_without_trust_no_code_runs_and_no_weight_is_downloaded(hub, tmp_path, revision):
    folder = tmp_path / "code"
    mark = tmp_path / "ran"
    repos.write(
        folder,
        {
            "configuration_tiny.py": f"open({str(mark)!r}, 'w')\n{repos.CONFIG}",
            "modeling_tiny.py": repos.MODEL,
        },
        {"auto_map": repos.AUTO_MAP, "hidden_size": 4},
    )
    write_checkpoint(folder, STATE)
    commit = hub.commit("org/code", folder)
    with pytest.raises(UntrustedCodeError) as caught:
        from_pretrained("org/code", revision=commit if revision else None)
    assert "trust_remote_code=True" in caught.value.cure
    assert not mark.exists()
    assert weight_bytes(hub, folder) < 0.3


def test_code_of_another_repo_needs_a_word_of_its_own(hub, code, tmp_path):
    folder = tmp_path / "weights only"
    auto_map = {name: f"org/code--{entry}" for name, entry in repos.AUTO_MAP.items()}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"auto_map": auto_map, "hidden_size": 4}))
    write_checkpoint(folder, {"linear.weight": torch.zeros(4, 4), "linear.bias": torch.zeros(4)}, shards=1)
    commit = hub.commit("org/weights", folder)
    with pytest.raises(UntrustedCodeError):
        from_pretrained("org/weights", revision=commit)
    with pytest.raises(UntrustedCodeError) as caught:
        from_pretrained("org/weights", trust_remote_code=True, revision=commit)
    assert "code_revision=" in caught.value.cure
    model = from_pretrained("org/weights", trust_remote_code=True, revision=commit, code_revision=code)
    assert torch.equal(model.linear.weight, torch.zeros(4, 4))


def test_offline_with_code(hub, code):
    from_pretrained("org/code", trust_remote_code=True, revision=code)
    hub.stop()
    model = from_pretrained("org/code", trust_remote_code=True, revision=code, local_files_only=True)
    assert torch.equal(model.linear.bias, torch.ones(4))


# --- adapters ---------------------------------------------------------------------------------------------------


def test_an_adapter_from_the_hub(hub, tmp_path):
    base = write_checkpoint(tmp_path / "base", adapters.Tiny().state_dict(), shards=1)
    tensors = adapters.lora_tensors(adapters.Tiny())
    hub.commit("org/lora", adapters.write(tmp_path / "lora", tensors))
    model = from_pretrained(base, model_class=lambda _config: adapters.Tiny(), adapter="org/lora")
    torch.testing.assert_close(model(adapters.TOKENS), adapters.by_hand(adapters.Tiny(), tensors, 3))
    assert isinstance(model.layers[0].q, nn.Linear)
    assert hub.fetched() == {"adapter_config.json", "adapter_model.safetensors"}


def test_adapters_in_folders_of_a_repo_are_named_with_the_call_that_takes_one(hub, tmp_path):
    """A load's `subfolder` is that of its base, so the adapter is loaded by a call of its own."""
    base = write_checkpoint(tmp_path / "base", adapters.Tiny().state_dict(), shards=1)
    for name in ("first", "second"):
        adapters.write(tmp_path / "lora" / name, adapters.lora_tensors(adapters.Tiny()))
    hub.commit("org/lora", tmp_path / "lora")
    with pytest.raises(NotFoundError) as caught:
        from_pretrained(base, model_class=lambda _config: adapters.Tiny(), adapter="org/lora")
    assert "subfolder" not in keywords_of(caught.value.cure)
    call = re.search(r"load_adapter\(.*?\)", caught.value.cure)[0]
    model = from_pretrained(base, model_class=lambda _config: adapters.Tiny())
    assert eval(call, {"load_adapter": load_adapter, "model": model}).modules == 6


def test_a_cache_whose_name_no_system_takes_is_one_typed_error(hub):
    with pytest.raises(UsageError, match="NUL"):
        open_checkpoint("org/name", cache_dir="a\0b")
