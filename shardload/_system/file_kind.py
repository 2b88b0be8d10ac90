"""Recognises a file by its first bytes, to name it when it is not the file that its reader expected."""

from __future__ import annotations

import re
from typing import NamedTuple

HEAD_BYTES = 512  # the mark of a tar archive is at byte 257

REFETCH = "download or copy the file again"
RESAVE = "re-save it as safetensors on a machine that trusts it"
_CONVERT = "convert it to safetensors with the tool that wrote it"
_UNPACK = "unpack it and use the file inside"
_LITTLE = "pip install gguf, and turn the file around in place: gguf-convert-endian FILE little"
_LLAMA = "use the repo that it was converted from"


class FileKind(NamedTuple):
    """The kind of a file in words ("a GGUF file"), the cure, and the code of the error.

    E-FORMAT means a sound file of another format; the other codes mean that the stored content is not the real file.
    """

    what: str
    cure: str
    code: str = "E-FORMAT"


_POINTER = FileKind(
    "a Git-LFS pointer, not the file itself",
    "run `git lfs pull` in the repo, or download the file with huggingface_hub",
    "E-LFS",
)
_PAGE = FileKind(
    "an HTML page: a log-in or an error page was saved in place of the file",
    "log in or check the address, then download the file again",
    "E-HTML",
)
_UTF16 = FileKind("UTF-16 text", "save it as UTF-8", "E-CORRUPT")
_OLD_TORCH = FileKind("in torch's tar format (before torch 0.1.10)", RESAVE)
_PICKLE = FileKind(
    "a Python pickle that torch.save did not write; shardload never unpickles such a file", RESAVE
)

# (offset, first bytes, kind)
_MAGIC = (
    (0, b"version https://git-lfs.github.com/spec/", _POINTER),
    (0, b"GGUF\1\0\0\0", FileKind("a GGUF file of version 1, which llama.cpp reads no more", _LLAMA)),
    (0, b"GGUF\0\0\0", FileKind("a GGUF file for big-endian machines", _LITTLE)),
    (0, b"GGUF", FileKind("a GGUF file (llama.cpp)", _LLAMA)),
    (0, b"lmgg", FileKind("a GGML file (llama.cpp, old)", _LLAMA)),
    (0, b"tjgg", FileKind("a GGML file (llama.cpp, old)", _LLAMA)),
    (0, b"fmgg", FileKind("a GGML file (llama.cpp, old)", _LLAMA)),
    (0, b"\x89HDF\r\n\x1a\n", FileKind("an HDF5 file (Keras .h5)", _CONVERT)),
    (0, b"\x93NUMPY", FileKind("a NumPy .npy array", _CONVERT)),
    (4, b"TFL3", FileKind("a TensorFlow Lite model", _CONVERT)),
    (0, b"\x1f\x8b", FileKind("a gzip archive", _UNPACK)),
    (0, b"BZh", FileKind("a bzip2 archive", _UNPACK)),
    (0, b"\xfd7zXZ\0", FileKind("an xz archive", _UNPACK)),
    (0, b"\x28\xb5\x2f\xfd", FileKind("a zstd archive", _UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", FileKind("a 7z archive", _UNPACK)),
    (0, b"PK\x05\x06", FileKind("an empty zip archive", REFETCH)),
    (0, b"PK\x03\x04", FileKind("a zip archive", _UNPACK)),
    (5, b"\0\0\0{", FileKind("a safetensors file", REFETCH)),
    (5, b"\0\0\0  ", FileKind("a safetensors file", REFETCH)),
    (257, b"ustar", FileKind("a tar archive", _UNPACK)),
    (0, b"\xff\xfe", _UTF16),
    (0, b"\xfe\xff", _UTF16),
)

_NAMES = (
    (r"\.ckpt-\d+\.|\.ckpt\.|\.data-\d{5}-of-\d{5}$", "part of a TensorFlow checkpoint"),
    (r"\.onnx$", "an ONNX model"),
    (r"\.msgpack$", "a Flax msgpack file"),
    (r"\.mlmodel$|\.pb$", "a protobuf model"),
)

# The members of the archives that torch wrote before 0.1.10.
_TAR_MEMBERS = (b"sys_info\0", b"pickle\0", b"storages\0", b"tensors\0")


def kind_of(head: bytes, name: str) -> FileKind | None:
    """Return the kind of a file that begins with `head` (512 bytes, or the whole of a shorter file).

    None for unknown text (JSON, for one) and for unknown bytes.
    """
    if not head:
        return FileKind("empty", REFETCH, "E-CORRUPT")
    if not head.strip(b"\0"):
        return FileKind(
            f"an unfinished download: it begins with {len(head)} zero bytes", REFETCH, "E-CORRUPT"
        )
    for offset, magic, kind in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return _OLD_TORCH if offset == 257 and head.startswith(_TAR_MEMBERS) else kind
    if head[:1] == b"\x80" and head[1:2] in {b"\2", b"\3", b"\4", b"\5"}:
        return _PICKLE
    if re.match(rb"\0?[{\[]\0[\s\"]", head) and b"\0\0" not in head[:4]:
        return _UTF16
    what = next((what for pattern, what in _NAMES if re.search(pattern, name)), None)
    return _markup(head) or (FileKind(what, _CONVERT) if what is not None else None)


def _markup(head: bytes) -> FileKind | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not re.match(rb"<[?!a-z]", start):
        return None
    if any(tag in start for tag in (b"<!doctype html", b"<html", b"<head", b"<body")):
        return _PAGE
    if b"<error>" in start:
        return FileKind("an XML error message that a server sent in place of the file", _PAGE.cure, "E-HTML")
    return FileKind("XML text", REFETCH, "E-CORRUPT") if start.startswith(b"<?xml") else None


def size_of_pointer(head: bytes) -> int | None:
    """Return the size in bytes of the file that a Git-LFS pointer stands for; None when the pointer has no size."""
    size = re.search(rb"\nsize (\d{1,20})\n?", head)
    return int(size[1]) if size else None


def looks_like_text(head: bytes) -> bool:
    """Whether bytes are UTF-8 text; the last character may be cut."""
    printable = sum(32 <= byte < 127 or byte >= 128 or byte in b"\t\r\n" for byte in head)
    return printable == len(head) and any(_decodes(head[: len(head) - cut]) for cut in range(4))


def _decodes(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError:
        return False
    return True
