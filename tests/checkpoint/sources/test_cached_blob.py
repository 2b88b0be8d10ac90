"""A link in the Hub's cache leads to the content that the Hub lists for that file, or the file is refused."""

from __future__ import annotations

import json
import os

import pytest

import shardload
from shardload import CorruptError
from shardload.checkpoint.sources import find_source
from shardload.where import Where

from .org_model import BIG, CONFIG, whole

NEW = {
    "config.json": CONFIG.replace(b"glm", b"GLM"),
    "vae/config.json": b"[]",
    "model.safetensors": BIG[::-1],
}


@pytest.fixture
def swapped(hub, commit, cache):
    """Two revisions in the cache; links of the first lead to blobs of the second, which are as long."""
    second = hub.commit("org/model", NEW)
    for revision in (commit, second):
        source, _ = find_source(Where("org/model", revision=revision))
        for name in NEW:
            source.open(name).local_path()
    snapshots = next(cache.rglob("snapshots"))
    for name in NEW:
        link = snapshots / commit / name
        link.unlink()
        link.symlink_to(os.path.relpath((snapshots / second / name).resolve(), link.parent))
    return snapshots / commit


def listing(snapshot, blobs):
    """Write the listing that the Hub's client leaves in its cache after a download of a whole repo."""
    trees = snapshot.parent.parent / "trees"
    trees.mkdir(exist_ok=True)
    files = {
        name: {"size": blob.size, "blob_id": blob.git}
        | ({"lfs_sha256": blob.sha256, "lfs_size": blob.size} if name.endswith("safetensors") else {})
        for name, blob in blobs.items()
    }
    (trees / f"{snapshot.name}.json").write_text(json.dumps({"format_version": 1, "files": files}))


@pytest.mark.parametrize("name", NEW)
def test_a_link_to_the_content_of_another_revision_is_refused_with_both_hashes(hub, commit, swapped, name):
    old = hub.repos["org/model"].commits[commit][name]
    new = hub.repos["org/model"].commits[hub.repos["org/model"].branches["main"]][name]
    source, _ = find_source(Where("org/model", revision=commit))
    with pytest.raises(CorruptError, match="another file or revision") as caught:
        source.open(name)
    kind = "sha256" if name == "model.safetensors" else "git"
    assert str(swapped / name) in caught.value.where
    for blob in (old, new):
        assert getattr(blob, kind) in caught.value.where
    (swapped / name).unlink()  # the cure
    assert whole(source.open(name)) == old.path.read_bytes()
    assert whole(find_source("org/model")[0].open(name)) == NEW[name]  # the other revision keeps its own


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("how", ["offline", "folder", "subfolder", "file", "cached"])
def test_without_the_network_the_clients_own_listing_is_asked(hub, commit, swapped, name, how):
    listing(swapped, hub.repos["org/model"].commits[commit])
    hub.stop()

    def opened():
        folder, _, last = name.rpartition("/")
        if how == "file":
            return find_source(swapped / name)[0].open(last)
        if how == "subfolder":
            return find_source(Where(swapped, subfolder=folder or None))[0].open(last)
        place = Where("org/model", revision=commit, local_files_only=how == "offline")
        return find_source(swapped if how == "folder" else place)[0].open(name)

    with pytest.raises(CorruptError, match="another file or revision"):
        opened()
    listing(swapped, hub.repos["org/model"].commits[hub.repos["org/model"].branches["main"]])
    assert whole(opened()) == NEW[name]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"files": 3}', '{"files": {"config.json": {"blob_id": 3}}}', "\xff"]
)
def test_a_listing_that_says_nothing_is_none(hub, commit, swapped, text):
    (swapped.parent.parent / "trees").mkdir()
    (swapped.parent.parent / "trees" / f"{commit}.json").write_text(text, encoding="latin-1")
    source, _ = find_source(swapped)
    assert whole(source.open("config.json")) == NEW["config.json"]


def test_a_small_file_that_is_named_by_another_kind_of_hash_is_hashed(hub, commit, swapped):
    """A file that moved from git to LFS, or back, between two revisions."""
    blobs = hub.repos["org/model"].commits[commit]
    listing(swapped, blobs)
    path = swapped.parent.parent / "trees" / f"{commit}.json"
    document = json.loads(path.read_text())
    for name, content in (("config.json", NEW["config.json"]), ("vae/config.json", b"{}")):
        document["files"][name] |= {"lfs_sha256": sha256_of(content), "lfs_size": len(content)}
    path.write_text(json.dumps(document))
    source, _ = find_source(swapped)
    assert whole(source.open("config.json")) == NEW["config.json"]
    with pytest.raises(CorruptError, match="another file or revision"):
        source.open("vae/config.json")


def sha256_of(content):
    from shardload.checkpoint.sources.digest import Digest

    return Digest("sha256", "", "").of(content)


def test_the_listing_of_the_real_client_is_read(hub, commit):
    _tree_cache = pytest.importorskip("huggingface_hub._tree_cache", reason="older clients keep no listing")

    path = find_source("org/model")[0].open("config.json").local_path()
    entry = _tree_cache.TreeCacheEntry(size=3, blob_id="0" * 40, lfs_sha256="1" * 64, lfs_size=3)
    _tree_cache.write_tree_cache(str(path.parents[2]), commit, {"config.json": entry})
    with pytest.raises(CorruptError, match="another file or revision"):
        shardload.load_config("org/model", local_files_only=True)
