"""PinnedRepo: a repo at one commit, its place in the cache, and downloads into that."""

from __future__ import annotations

import pytest

from shardload.checkpoint.sources import find_source
from shardload.checkpoint.sources.hub_repo import PinnedRepo, ask_listing, pinned_in_cache
from shardload.errors import CorruptError, NotFoundError
from shardload.where import Where

from .org_model import BIG, CONFIG, FILES, cached_files, whole


def test_a_small_file_is_downloaded_once(hub, commit):
    source, _ = find_source("org/model")
    file = source.open("config.json")
    assert (file.read_at(0, 5), file.read_at(5, 5), file.local_path().read_bytes()) == (
        CONFIG[:5],
        CONFIG[5:10],
        CONFIG,
    )
    assert (
        whole(source.open("config.json")) == whole(find_source("org/model")[0].open("config.json")) == CONFIG
    )
    assert hub.sent("config.json") == len(CONFIG)


def test_small_downloads_draw_no_progress_bar(hub, commit, capfd):
    whole(find_source("org/model")[0].open("config.json"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("cut", [0, 1_000_000])
def test_a_cut_download_is_resumed(hub, commit, cut):
    hub.fault("org/model", "model.safetensors", cut=cut, times=1)
    assert find_source("org/model")[0].open("model.safetensors").local_path().read_bytes() == BIG


def test_a_download_that_is_always_cut_is_said_and_leaves_the_cache_clean(hub, commit, cache):
    hub.fault("org/model", "model.safetensors", cut=1000)
    source, _ = find_source("org/model")
    with pytest.raises(NotFoundError, match="could not be reached") as caught:
        source.open("model.safetensors").local_path()
    assert caught.value.where == f"org/model@{commit}/model.safetensors"
    assert cached_files(cache) == set()
    hub.heal()
    assert source.open("model.safetensors").local_path().read_bytes() == BIG


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_download_of_another_length_is_said_and_leaves_the_cache_clean(hub, commit, cache, file):
    hub.fault("org/model", file, size=len(FILES[file]) + 9)
    source, _ = find_source("org/model")
    with pytest.raises(CorruptError, match="another size") as caught:
        source.open(file).local_path()
    assert file in str(caught.value)
    assert cached_files(cache) == set()
    hub.heal()
    assert source.open(file).local_path().read_bytes() == FILES[file]


def test_a_ref_that_is_no_commit_is_not_followed(cache, hub, commit):
    whole(find_source("org/model")[0].open("config.json"))
    for content in ["../../..", "", "main", commit.upper()]:
        (cache / "models--org--model" / "refs" / "main").write_text(content)
        with pytest.raises(NotFoundError):
            find_source(Where("org/model", local_files_only=True))


def test_the_listing_names_the_commit_and_the_files_own_hashes(hub, commit):
    import hashlib

    revision, listing = ask_listing("org/model", "main", None)
    assert revision == commit
    assert set(listing) == set(FILES)
    assert {name: listed.size for name, listed in listing.items()} == {n: len(c) for n, c in FILES.items()}
    small = b"blob %d\0" % len(CONFIG) + CONFIG  # git's hash of a file
    assert listing["config.json"].digest.hex == hashlib.sha1(small).hexdigest()


def test_a_download_is_remembered_under_the_branch_that_was_asked(hub, commit, cache):
    assert pinned_in_cache("org/model", "main", cache, None) is None
    pinned = PinnedRepo("org/model", commit, "main", cache)
    assert pinned.cached("config.json") is None
    pinned.download("config.json", quiet=True)
    assert pinned_in_cache("org/model", "main", cache, None) == pinned
    assert pinned_in_cache("org/model", commit, cache, None).snapshot == pinned.snapshot
    assert pinned_in_cache("org/model", "v2", cache, None) is None


def test_a_forgotten_file_is_gone_with_its_blob(hub, commit, cache):
    pinned = PinnedRepo("org/model", commit, "main", cache)
    pinned.download("config.json", quiet=True)
    blobs = list(cache.rglob("blobs/*"))
    assert len(blobs) == 1
    pinned.forget("config.json")
    assert pinned.cached("config.json") is None
    assert not list(cache.rglob("blobs/*"))
    pinned.forget("config.json")  # nothing is left to delete
    assert pinned.ask_size("config.json") == len(CONFIG)
