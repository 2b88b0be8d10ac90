from __future__ import annotations

import copy
import os
import pickle
import sys
import tempfile
from pathlib import Path

import pytest

from shardload.checkpoint.sources import FolderSource, LocalFile, find_source
from shardload.errors import AccessError, CorruptError, NotFoundError, UnsafeError
from shardload.where import Where

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def tree(root, **files):
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def snapshot(cache, name="models--org--model"):
    """A repo in a Hub cache: blobs, and a snapshot of links to the blobs."""
    repo = cache / name
    folder = repo / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (repo / "blobs").mkdir()
    return repo, folder


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_names_are_recursive_sorted_and_without_hidden_ones(tmp_path):
    for name in [
        "b.bin",
        "a.json",
        "sub/c.py",
        "sub/deep/d",
        ".hidden",
        ".cache/x",
        ".git/config",
        "sub/.x",
        "back\\slash",
    ]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    assert list(FolderSource(tmp_path).names()) == ["a.json", "b.bin", "sub/c.py", "sub/deep/d"]


def test_every_listed_name_opens(tmp_path):
    tree(tmp_path, config=b"c", sub__model=b"mm")
    source = FolderSource(tmp_path)
    assert {name: source.open(name).size for name in source.names()} == {"config": 1, "sub/model": 2}


def test_read_at_reads_parts_and_stops_at_the_end(tmp_path):
    tree(tmp_path, f=bytes(range(100)))
    file = FolderSource(tmp_path).open("f")
    assert file.read_at(10, 5) == bytes(range(10, 15))
    assert file.read_at(95, 50) == bytes(range(95, 100))
    assert file.read_at(100, 1) == file.read_at(1000, 1) == file.read_at(5, 0) == b""
    for offset, length in [(-1, 1), (0, -1)]:
        with pytest.raises(ValueError):
            file.read_at(offset, length)


def test_no_descriptor_stays_open_between_two_reads(tmp_path):
    tree(tmp_path, f=b"abc")
    before = descriptors()
    files = [FolderSource(tmp_path).open("f") for _ in range(10)]
    assert [file.read_at(0, 3) for file in files] == [b"abc"] * 10
    assert descriptors() == before


def test_a_copy_and_a_pickle_read_the_same_file(tmp_path):
    tree(tmp_path, f=b"abc")
    file = FolderSource(tmp_path).open("f")
    others = [copy.copy(file), pickle.loads(pickle.dumps(file))]
    file.close()
    assert [other.read_at(0, 3) for other in others] == [b"abc", b"abc"]


def test_a_file_that_was_replaced_or_removed_since_it_was_opened_is_refused(tmp_path):
    tree(tmp_path, f=b"abc", g=b"xyz")
    file = FolderSource(tmp_path).open("f")
    (tmp_path / "g").replace(tmp_path / "f")
    with pytest.raises(CorruptError, match="'f' was changed since it was opened"):
        file.read_at(0, 3)
    (tmp_path / "f").unlink()
    with pytest.raises(NotFoundError, match="'f' can't be opened"):
        file.read_at(0, 3)


def test_files_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    tree(tmp_path, repo__f=b"abc")
    monkeypatch.chdir(tmp_path)
    source = FolderSource("repo")
    monkeypatch.chdir("/")
    assert source.label == "repo"
    assert source.open("f").read_at(0, 3) == b"abc"
    assert source.open("f").local_path() == tmp_path / "repo" / "f"


def test_subfolder_narrows_names_and_files(tmp_path):
    tree(tmp_path, config=b"", vae__config=b"v", vae__deep__x=b"")
    source = FolderSource(tmp_path, "vae")
    assert list(source.names()) == ["config", "deep/x"]
    assert source.open("config").read_at(0, 1) == b"v"
    with pytest.raises(NotFoundError, match="unet"):
        FolderSource(tmp_path, "unet")
    for hostile in ["..", "../x", "/etc", "vae/..", "vae\\.."]:
        with pytest.raises(UnsafeError):
            FolderSource(tmp_path, hostile)


def test_a_missing_file_names_the_nearest(tmp_path):
    tree(tmp_path, **{"config.json": b"", "model.safetensors": b""})
    with pytest.raises(NotFoundError) as caught:
        FolderSource(tmp_path).open("model.safetensor")
    assert "'model.safetensors'" in caught.value.cure
    assert caught.value.where == str(tmp_path)


def test_a_folder_is_no_file_and_a_pipe_is_refused_without_waiting(tmp_path):
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotFoundError, match="folder"):
        FolderSource(tmp_path).open("sub")
    with pytest.raises(UnsafeError, match="regular"):
        FolderSource(tmp_path).open("pipe")


@pytest.fixture
def ordinary_user():
    """Run the test as the user nobody if it runs as root, who may read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


def test_what_this_user_may_not_read_is_said(ordinary_user):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tree(root, f=b"", closed__f=b"")
        (root / "f").chmod(0)
        (root / "closed").chmod(0)
        source = FolderSource(root)
        for name in ("f", "closed/f"):
            with pytest.raises(AccessError) as caught:
                source.open(name)
            assert str(root / name) == caught.value.where
            assert caught.value.cure
        with pytest.raises(AccessError):
            find_source(root / "closed" / "f")
        (root / "closed").chmod(0o700)


@pytest.mark.parametrize(
    "target", ["../secret", "{root}/../secret", "/etc/passwd", "sub/../../secret", "../root-too/f"]
)
def test_a_link_out_of_the_folder_is_refused(tmp_path, target):
    tree(tmp_path, secret=b"s", root__sub__f=b"", **{"root-too__f": b"s"})
    (tmp_path / "root" / "model.bin").symlink_to(target.format(root=tmp_path / "root"))
    with pytest.raises(UnsafeError) as caught:
        FolderSource(tmp_path / "root").open("model.bin")
    assert caught.value.where == str(tmp_path / "root")


def test_a_linked_folder_that_leads_out_is_refused_and_not_listed(tmp_path):
    tree(tmp_path, outside__f=b"s", root__f=b"")
    (tmp_path / "root" / "sub").symlink_to(tmp_path / "outside")
    source = FolderSource(tmp_path / "root")
    assert list(source.names()) == ["f"]
    with pytest.raises(UnsafeError):
        source.open("sub/f")
    with pytest.raises(UnsafeError):
        FolderSource(tmp_path / "root", "sub")


def test_nothing_outside_is_opened_for_a_refused_link(tmp_path):
    tree(tmp_path, secret=b"s", root__f=b"")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    opened = []
    watching = True
    sys.addaudithook(
        lambda event, args: opened.append(str(args[0])) if watching and event == "open" else None
    )
    with pytest.raises(UnsafeError):
        FolderSource(tmp_path / "root").open("link")
    FolderSource(tmp_path / "root").open("f")
    watching = False
    assert [path for path in opened if path.startswith(str(tmp_path))] == [str(tmp_path / "root" / "f")]


def test_a_loop_of_links_is_an_error_and_no_hang(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(NotFoundError):
        FolderSource(tmp_path).open("a")


def test_a_link_within_the_folder_and_a_linked_root_are_followed(tmp_path):
    tree(tmp_path, root__sub__f=b"abc")
    (tmp_path / "root" / "g").symlink_to("sub/f")
    (tmp_path / "alias").symlink_to("root")
    assert FolderSource(tmp_path / "alias").open("g").read_at(0, 3) == b"abc"


def test_blobs_of_the_same_repo_are_followed_in_a_hub_cache(tmp_path):
    repo, folder = snapshot(tmp_path)
    (repo / "blobs" / "etag").write_bytes(b"abc")
    (folder / "model.bin").symlink_to("../../blobs/etag")
    (folder / "sub").mkdir()
    (folder / "sub" / "f").symlink_to("../../../blobs/etag")
    assert FolderSource(folder).open("model.bin").read_at(0, 3) == b"abc"
    assert FolderSource(folder, "sub").open("f").read_at(0, 3) == b"abc"
    assert FolderSource(folder / "sub").open("f").read_at(0, 3) == b"abc"
    assert list(FolderSource(folder).names()) == ["model.bin", "sub/f"]
    assert FolderSource(folder).open("model.bin").local_path() == folder / "model.bin"


def test_blobs_that_repos_share_are_followed_by_their_content_address_only(tmp_path):
    repo, folder = snapshot(tmp_path)
    address = "ab" + "0" * 62
    tree(tmp_path, **{f"blobs__ab__{address}": b"abc", "blobs__ab__other": b"s"})
    (repo / "blobs" / "etag").symlink_to(f"../../blobs/ab/{address}")
    (folder / "model.bin").symlink_to("../../blobs/etag")
    (folder / "evil.bin").symlink_to("../../../blobs/ab/other")
    assert FolderSource(folder).open("model.bin").read_at(0, 3) == b"abc"
    with pytest.raises(UnsafeError):
        FolderSource(folder).open("evil.bin")


def test_other_places_are_refused_from_a_hub_cache(tmp_path):
    repo, folder = snapshot(tmp_path)
    other, _ = snapshot(tmp_path, "models--org--other")
    tree(tmp_path, secret=b"s")
    (other / "blobs" / "etag").write_bytes(b"s")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_bytes(b"s")
    links = {"a": other / "blobs" / "etag", "b": tmp_path / "secret", "c": repo / "refs" / "main"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
        with pytest.raises(UnsafeError):
            FolderSource(folder).open(name)


@pytest.mark.parametrize(
    "folder",
    ["models--org--model/snapshots/main", "models--org--model/other/" + COMMIT, "x/snapshots/" + COMMIT],
)
def test_a_folder_that_only_resembles_a_cache_has_no_blobs(tmp_path, folder):
    root = tmp_path / folder
    root.mkdir(parents=True)
    blobs = root.parent.parent / "blobs"
    blobs.mkdir()
    (blobs / "etag").write_bytes(b"s")
    (root / "f").symlink_to(blobs / "etag")
    with pytest.raises(UnsafeError):
        FolderSource(root).open("f")


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(NotFoundError):
        FolderSource(tmp_path / "nowhere")
    tree(tmp_path, f=b"")
    with pytest.raises(NotFoundError):
        FolderSource(tmp_path / "f")


def test_local_file_follows_a_link_it_is_given(tmp_path):
    tree(tmp_path, f=b"abc")
    (tmp_path / "link").symlink_to("f")
    assert LocalFile("link", tmp_path / "link").read_at(0, 3) == b"abc"


def test_allow_links_follows_what_the_caller_linked(tmp_path):
    tree(tmp_path, outside__f=b"abc", root__g=b"")
    root = tmp_path / "root"
    (root / "f").symlink_to(tmp_path / "outside" / "f")
    (root / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafeError) as caught:
        FolderSource(root).open("f")
    assert "allow_links=True" in caught.value.cure
    source = FolderSource(root, allow_links=True)
    assert source.open("f").read_at(0, 3) == source.open("sub/f").read_at(0, 3) == b"abc"
    assert FolderSource(root, "sub", allow_links=True).open("f").size == 3
    assert find_source(Where(root, allow_links=True))[0].open("f").size == 3
    for hostile in ("../outside/f", str(tmp_path / "outside" / "f")):
        with pytest.raises(UnsafeError):
            source.open(hostile)
