from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shardload.checkpoint.sources import FolderSource, find_source
from shardload.errors import NotFoundError, UnsafeError, UsageError
from shardload.where import Where


@pytest.fixture
def repo(tmp_path):
    folder = tmp_path / "repo"
    (folder / "vae").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"abc")
    (folder / "vae" / "config.json").write_bytes(b"{}")
    return folder


def test_a_folder(repo, tmp_path, monkeypatch):
    source, file = find_source(repo)
    assert isinstance(source, FolderSource)
    assert (file, source.label, source.revision, source.is_local, list(source.warnings)) == (
        None,
        str(repo),
        None,
        True,
        [],
    )
    monkeypatch.chdir(tmp_path)
    assert find_source("repo")[0].label == "repo"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_source("~/repo")[0].label == str(repo)


def test_a_folder_that_looks_like_a_repo_of_the_hub_is_taken_first(tmp_path, monkeypatch):
    (tmp_path / "org" / "name@main").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_source("org/name@main")[0].label == "org/name@main"


@pytest.mark.parametrize("subfolder", ["vae", "vae/"])
def test_a_subfolder(repo, subfolder):
    source, _ = find_source(Where(repo, subfolder=subfolder))
    assert list(source.names()) == ["config.json"]


def test_a_single_file_is_its_folder_and_its_name(repo):
    source, file = find_source(str(repo / "model.safetensors"))
    assert (source.label, file) == (str(repo), "model.safetensors")
    assert source.open(file).read_at(0, 3) == b"abc"


def test_a_link_to_a_file_that_the_caller_names_is_followed(repo, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "mine.safetensors"
    link.symlink_to(repo / "model.safetensors")
    source, file = find_source(link)
    assert (source.label, file) == (str(repo), "model.safetensors")


@pytest.mark.parametrize(
    "where",
    [
        "./nowhere",
        "/no/where",
        "../x",
        "~/x",
        "a/b/c",
        "model.safetensors",
        "model.BIN",
        "C:\\x",
        "org/name/",
        "a b",
        "org/na..me",
        "org/.name",
        "-x",
        "~nobody-of-this-name/x",
        "a" * 5000,
        "/" + "a/" * 5000,
    ],
)
def test_what_cannot_be_a_repo_is_a_missing_path(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError) as caught:
        find_source(where)
    assert "no file or folder" in caught.value.what
    assert "Hub" in caught.value.what
    assert "huggingface_hub" not in str(caught.value)


def test_a_path_object_is_never_a_repo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError):
        find_source(Path("org/name"))


@pytest.mark.parametrize("where", ["", "a\0b", "a\ud800b", None, 7, b""])
def test_no_name_at_all(where):
    with pytest.raises(UsageError):
        find_source(where)


def test_keywords_that_contradict_a_path(repo):
    with pytest.raises(UsageError, match="revision"):
        find_source(Where(repo, revision="main"))
    with pytest.raises(UsageError, match="subfolder"):
        find_source(Where(repo / "model.safetensors", subfolder="vae"))


@pytest.mark.parametrize(
    ("where", "revision"), [("org/name@main", "dev"), ("org/name@", None), ("org/name", "")]
)
def test_two_revisions_or_an_empty_one(where, revision):
    with pytest.raises(UsageError):
        find_source(Where(where, revision=revision))


@pytest.mark.parametrize("revision", ["../../x", "/etc/passwd", "a\\b", "x\0"])
def test_a_revision_is_no_way_out_of_the_cache(revision, tmp_path):
    with pytest.raises(UsageError):
        find_source(Where("org/name", revision=revision, local_files_only=True, cache_dir=tmp_path))


@pytest.mark.parametrize("token", ["", "hf_secret\n", "hf secret"])
def test_an_impossible_token_is_refused_and_not_quoted(token, tmp_path):
    with pytest.raises(UsageError) as caught:
        find_source(Where("org/name", token=token, cache_dir=tmp_path))
    assert "secret" not in str(caught.value)


def test_a_hostile_subfolder_of_a_repo(tmp_path):
    with pytest.raises(UnsafeError):
        find_source(Where("org/name", subfolder="../x", cache_dir=tmp_path, local_files_only=True))


def test_local_checkpoints_need_neither_huggingface_hub_nor_torch(repo):
    code = f"""
import sys
import shardload.checkpoint.sources
from shardload.checkpoint.sources import find_source
source, _ = find_source({str(repo)!r})
[source.open(name).read_at(0, 1) for name in source.names()]
try:
    find_source("./nowhere")
except Exception as error:
    assert type(error).__name__ == "NotFoundError", error
assert not {{"torch", "huggingface_hub", "transformers", "httpx", "requests"}} & set(sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
