from __future__ import annotations

import json
import subprocess
import sys

import pytest

from shardload.checkpoint.sources import find_source
from shardload.checkpoint.sources.blocks import BLOCK
from shardload.checkpoint.sources.hub import SMALL
from shardload.errors import CorruptError, NotFoundError, UnsafeError
from shardload.where import Where
from tests.hub_server import forget_connections

from .org_model import BIG, CONFIG, FILES, cached_files, whole

# ---- resolving


@pytest.mark.parametrize("where", ["org/model", "org/model@main", "org/model@{commit}"])
def test_every_way_of_naming_a_revision_is_pinned_to_its_commit(hub, commit, where):
    source, file = find_source(where.format(commit=commit))
    assert file is None
    assert (source.revision, source.label, source.is_local) == (commit, f"org/model@{commit}", False)
    assert source.names() == ["config.json", "model.safetensors", "pytorch_model.bin", "vae/config.json"]
    assert len(hub.requests) == 1
    assert hub.fetched() == set()


def test_the_revision_keyword_and_a_branch_with_a_slash(hub, commit):
    pull = hub.commit("org/model", {"config.json": b"{}"}, branch="refs/pr/1")
    assert find_source(Where("org/model", revision="refs/pr/1"))[0].revision == pull
    assert find_source("org/model@refs/pr/1")[0].revision == pull
    assert find_source(Where("org/model@main", revision="main"))[0].revision == commit


def test_a_repo_of_one_part(hub):
    commit = hub.commit("gpt2", {"config.json": CONFIG})
    assert whole(find_source("gpt2")[0].open("config.json")) == CONFIG
    assert find_source("gpt2")[0].label == f"gpt2@{commit}"


def test_a_source_stays_at_its_commit_when_the_branch_moves(hub, commit):
    source, _ = find_source("org/model")
    newer = hub.commit("org/model", {"config.json": b"new"})
    assert whole(source.open("config.json")) == CONFIG
    assert whole(find_source("org/model")[0].open("config.json")) == b"new"
    assert whole(find_source(Where("org/model", revision=commit))[0].open("config.json")) == CONFIG
    assert find_source("org/model")[0].revision == newer


def test_a_subfolder(hub, commit):
    source, _ = find_source(Where("org/model", subfolder="vae"))
    assert source.names() == ["config.json"]
    file = source.open("config.json")
    assert (file.name, whole(file)) == ("config.json", b"{}")
    assert source.open("config.json").name == "config.json"  # now from the cache
    with pytest.raises(NotFoundError) as caught:
        find_source(Where("org/model", subfolder="vea"))
    assert "'vae'" in caught.value.cure


def test_the_token_reaches_the_hub_and_not_the_cdn(hub):
    hub.commit("org/private", FILES, token="hf_right")
    source, _ = find_source(Where("org/private", token="hf_right"))
    file = source.open("model.safetensors")
    assert file.read_at(0, 8) == BIG[:8]
    assert file.read_at(2_000_000, 8) == BIG[2_000_000:2_000_008]
    assert source.open("model.safetensors").local_path().read_bytes() == BIG
    assert {request.token for request in hub.requests if request.host == "hub"} == {"hf_right"}
    assert {request.token for request in hub.requests if request.host == "cdn"} == {""}


# ---- only what is asked for


def test_only_the_files_that_are_asked_for_are_fetched(hub, commit, cache):
    source, _ = find_source("org/model")
    source.open("model.safetensors")
    assert hub.fetched() == set()
    whole(source.open("config.json"))
    assert hub.fetched() == {"config.json"}
    assert cached_files(cache) == {"config.json"}
    path = source.open("pytorch_model.bin").local_path()
    assert path.read_bytes() == BIG[::-1]
    assert hub.fetched() == {"config.json", "pytorch_model.bin"}
    assert hub.sent("pytorch_model.bin") == len(BIG)


def test_what_is_in_the_cache_is_read_from_the_disk(hub, commit):
    find_source("org/model")[0].open("model.safetensors").local_path()
    hub.log.clear()
    file = find_source("org/model")[0].open("model.safetensors")
    assert whole(file) == BIG
    assert hub.fetched() == set()
    assert len(hub.requests) == 1


def test_a_file_is_read_from_the_disk_once_it_has_been_downloaded(hub, commit):
    file = find_source("org/model")[0].open("model.safetensors")
    file.read_at(0, 8)
    file.local_path()
    hub.log.clear()
    assert whole(file) == BIG
    assert hub.log == []
    file.close()
    assert whole(file) == BIG


# ---- parts of files


# ---- downloads that go wrong


def test_a_cached_copy_that_was_damaged_is_said(hub, commit):
    path = find_source("org/model")[0].open("model.safetensors").local_path()
    path.resolve().write_bytes(BIG[:100])
    with pytest.raises(CorruptError, match="100 bytes") as caught:
        find_source("org/model")[0].open("model.safetensors")
    assert str(path) in str(caught.value)
    path.resolve().unlink()
    path.unlink()
    assert find_source("org/model")[0].open("model.safetensors").local_path().read_bytes() == BIG


# ---- files that do not exist, or that this caller may not read


def test_a_missing_file_names_the_nearest_and_asks_nothing(hub, commit):
    source, _ = find_source("org/model")
    with pytest.raises(NotFoundError) as caught:
        source.open("model.safetensor")
    assert "'model.safetensors'" in caught.value.cure
    assert commit in caught.value.where
    assert len(hub.requests) == 1


def test_a_listed_file_that_the_server_lacks(hub, commit):
    hub.fault("org/model", "config.json", status=404, code="EntryNotFound")
    with pytest.raises(NotFoundError, match=r"'config\.json' of 'org/model' is not there"):
        whole(find_source("org/model")[0].open("config.json"))


def test_a_hostile_name_is_refused_before_anything_is_asked(hub, commit):
    source, _ = find_source("org/model")
    for name in ["../model/config.json", "/etc/passwd", "a\\b", "", "vae/../config.json"]:
        with pytest.raises(UnsafeError):
            source.open(name)
    assert len(hub.requests) == 1


def test_a_hostile_name_in_the_listing_is_left_out_and_said(hub):
    hub.commit("org/model", {"config.json": CONFIG, "../../evil.py": b"x", "a\\..\\b": b"x"})
    source, _ = find_source("org/model")
    assert source.names() == ["config.json"]
    assert [warning for warning in source.warnings if "evil.py" in warning]
    with pytest.raises(UnsafeError):
        source.open("../../evil.py")


# ---- without a network


def test_offline_from_the_cache(hub, commit, cache):
    source, _ = find_source("org/model")
    whole(source.open("config.json"))
    hub.log.clear()
    for where in ("org/model", f"org/model@{commit}"):
        offline, _ = find_source(Where(where, local_files_only=True))
        assert offline.label == f"org/model@{commit}"
        assert offline.names() == ["config.json"]
        assert whole(offline.open("config.json")) == CONFIG
    assert offline.warnings == []
    assert hub.log == []


def test_offline_names_the_missing_file(hub, commit):
    whole(find_source("org/model")[0].open("config.json"))
    source, _ = find_source(Where("org/model", local_files_only=True))
    with pytest.raises(NotFoundError, match=r"'model\.safetensors' is not in the cache") as caught:
        source.open("model.safetensors")
    assert commit in caught.value.where
    assert "network" in caught.value.cure


@pytest.mark.parametrize("where", ["org/model", "org/model@dev", "org/model@" + "0" * 40, "org/nothing"])
def test_offline_with_nothing_in_the_cache(hub, commit, where):
    find_source("org/model")  # listing a repo caches nothing
    with pytest.raises(NotFoundError, match="not in the cache") as caught:
        find_source(Where(where, local_files_only=True))
    assert "local_files_only" in str(caught.value)


def test_the_offline_variable(hub, commit, cache, monkeypatch):
    whole(find_source("org/model")[0].open("config.json"))
    hub.log.clear()
    hub.use(monkeypatch, cache=cache, HF_HUB_OFFLINE="1")
    assert whole(find_source("org/model")[0].open("config.json")) == CONFIG
    with pytest.raises(NotFoundError, match="HF_HUB_OFFLINE"):
        find_source("org/other")
    assert hub.log == []


def test_the_cache_stands_in_when_the_network_is_down(hub, commit):
    whole(find_source("org/model")[0].open("config.json"))
    hub.stop()
    forget_connections()
    source, _ = find_source("org/model")
    assert source.revision == commit
    assert whole(source.open("config.json")) == CONFIG
    [warning] = source.warnings
    assert commit in warning
    assert "could not be reached" in warning
    with pytest.raises(NotFoundError, match="could not be reached"):
        find_source("org/other")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_the_cache_stands_in_when_the_hub_is_down(hub, commit, status):
    whole(find_source("org/model")[0].open("config.json"))
    hub.fault("org/model", status=status)
    source, _ = find_source("org/model")
    assert str(status) in source.warnings[0]
    with pytest.raises(NotFoundError, match=str(status)):
        find_source(Where("org/model", revision="dev"))


def test_a_hub_that_does_not_answer_is_not_waited_for(hub, commit, cache, monkeypatch):
    hub.use(monkeypatch, cache=cache, timeout=0.1)
    hub.fault("org/model", stall=0)
    with pytest.raises(NotFoundError, match="could not be reached"):
        find_source("org/model")


@pytest.mark.parametrize(
    ("status", "code"), [(401, "RepoNotFound"), (403, "GatedRepo"), (404, "RevisionNotFound"), (403, "")]
)
def test_the_cache_does_not_stand_in_for_a_refusal(hub, commit, status, code):
    whole(find_source("org/model")[0].open("config.json"))
    hub.fault("org/model", status=status, code=code)
    with pytest.raises(NotFoundError):
        find_source("org/model")


def test_another_cache_folder(hub, commit, tmp_path, cache):
    whole(find_source(Where("org/model", cache_dir=tmp_path / "mine"))[0].open("config.json"))
    assert not cache.exists()
    assert find_source(Where("org/model", cache_dir=tmp_path / "mine", local_files_only=True))[0].names() == [
        "config.json"
    ]


def test_the_snapshot_in_the_cache_is_a_folder_like_any_other(hub, commit):
    source, _ = find_source("org/model")
    whole(source.open("config.json"))
    path = source.open("model.safetensors").local_path()
    folder, _ = find_source(path.parent)
    assert list(folder.names()) == ["config.json", "model.safetensors"]
    assert whole(folder.open("model.safetensors")) == BIG
    single, name = find_source(path)
    assert (single.label, name) == (str(path.parent), "model.safetensors")


# ---- another process, as users run it


def test_the_environment_of_a_process_decides_which_hub_is_asked(hub, commit, cache):
    code = """
import json, sys
from shardload.checkpoint.sources import find_source
source, _ = find_source("org/model")
file = source.open("model.safetensors")
print(json.dumps([source.label, file.read_at(0, 8).hex(), source.open("config.json").read_at(0, 100).decode()]))
"""
    run = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(run, env=hub.env(cache), check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == [f"org/model@{commit}", BIG[:8].hex(), CONFIG.decode()]
    assert done.stderr == ""
    assert hub.sent("model.safetensors") <= BLOCK
    assert len(CONFIG) < SMALL < len(BIG)
