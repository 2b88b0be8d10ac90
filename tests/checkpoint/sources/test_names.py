from __future__ import annotations

import pytest

from shardload.checkpoint.sources import FolderSource
from shardload.checkpoint.sources.names import suggest
from shardload.errors import NotFoundError, UnsafeError

HOSTILE = [
    "",
    ".",
    "..",
    "../outside.bin",
    "../../outside.bin",
    "sub/../../outside.bin",
    "sub/..",
    "sub/../model.bin",
    "./model.bin",
    "sub/./model.bin",
    "sub//model.bin",
    "/",
    "/etc/passwd",
    "//etc/passwd",
    "//server/share/model.bin",
    "sub/",
    "..\\outside.bin",
    "sub\\..\\..\\outside.bin",
    "\\\\server\\share\\model.bin",
    "\\windows\\model.bin",
    "C:model.bin",
    "C:/model.bin",
    "c:\\model.bin",
    "z:..",
    "model.bin\0",
    "model.bin\0.safetensors",
    "\0",
    "file:///etc/passwd",
    "http://127.0.0.1/model.bin",
    "model\ud800.bin",
    None,
    7,
    ["model.bin"],
    b"model.bin",
]

# These names are odd, but none leads out of the folder.
LITERAL = [
    "~",
    "~/model.bin",
    "%2e%2e/outside.bin",
    "$HOME/model.bin",
    "...",
    "sub/.../model.bin",
    "a" * 5000,
    "a\nb",
]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "model.bin").write_bytes(b"inside")
    (root / "sub" / "model.bin").write_bytes(b"inside")
    (tmp_path / "outside.bin").write_bytes(b"secret")
    return FolderSource(root)


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_name_is_refused_before_any_file_is_touched(folder, name):
    with pytest.raises(UnsafeError) as caught:
        folder.open(name)
    assert caught.value.where == folder.label
    assert caught.value.cure
    str(caught.value).encode("utf-8")  # printable, whatever the name was


@pytest.mark.parametrize("name", LITERAL, ids=ascii)
def test_an_odd_name_is_only_missing(folder, name):
    with pytest.raises(NotFoundError):
        folder.open(name)


def test_control_characters_of_a_name_are_escaped_in_the_message(folder):
    with pytest.raises(NotFoundError) as caught:
        folder.open("\x1b[2Jmodel\u202e.bin")
    assert "\x1b" not in str(caught.value)
    assert "\u202e" not in str(caught.value)


def test_a_missing_name_is_answered_with_the_nearest_names():
    names = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "sub/vocab.txt",
    ]
    assert "'config.json'" in suggest("confg.json", names)
    assert "'model-00001-of-00002.safetensors'" in suggest("model-00001-of-00003.safetensors", names)
    assert "'sub/vocab.txt'" in suggest("vocab.txt", names)
    assert "'config.json'" in suggest("zzz", names)
    assert "no files" in suggest("zzz", [])
