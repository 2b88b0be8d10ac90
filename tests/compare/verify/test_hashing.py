"""Hashes of files: equal to hashlib's and git's, and a file that is gone or has changed is said."""

from __future__ import annotations

import hashlib

import pytest

from shardload import CorruptError, NotFoundError
from shardload._system.file_identity import file_identity
from shardload.checkpoint.sources.digest import Digest
from shardload.compare.verify.hashing import hash_file

CONTENT = bytes(range(256)) * 100


@pytest.fixture
def path(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path / "file"


def test_what_differs_is_said_with_both_hashes(path):
    right = Digest("sha256", hashlib.sha256(CONTENT).hexdigest(), "a list")
    git = Digest("git", hashlib.sha1(b"blob 25600\0" + CONTENT).hexdigest(), "the Hub")
    assert hash_file(path, [right, git], file_identity(path)) == ""
    wrong = hash_file(path, [right, Digest("sha256", "0" * 64, "another list")])
    assert wrong == f"another list says sha256 {'0' * 64}, the bytes have {right.hex}"


def test_a_file_that_was_replaced_or_removed(path):
    before = file_identity(path)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(CorruptError, match="since its header was read"):
        hash_file(path, [], before)
    path.unlink()
    with pytest.raises(NotFoundError, match="can't be opened"):
        hash_file(path, [], before)


def test_a_read_that_is_no_longer_needed_ends(path):
    assert hash_file(path, [Digest("sha256", "0" * 64, "a list")], stop=lambda: True) == ""
