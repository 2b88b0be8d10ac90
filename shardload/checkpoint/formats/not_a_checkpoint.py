"""Names what a file is when it is no checkpoint, and says what to do about it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from shardload.checkpoint.formats.text import REFETCH, RESAVE, quote
from shardload.errors import CorruptError, ShardloadError, UnsupportedError

if TYPE_CHECKING:
    from shardload.checkpoint.sources.source import SourceFile

HEAD_BYTES = 512  # a tar archive shows itself at byte 257

_LFS = b"version https://git-lfs.github.com/spec/"
_CONVERT = "convert it to safetensors with the tool that wrote it"
_UNPACK = "unpack it and pass the checkpoint inside"


class _Kind(NamedTuple):
    magic: bytes
    offset: int
    what: str
    cure: str


_KINDS = (
    _Kind(b"GGUF", 0, "a GGUF file (llama.cpp)", "use the repo that it was converted from"),
    _Kind(b"lmgg", 0, "a GGML file (llama.cpp, old)", "use the repo that it was converted from"),
    _Kind(b"tjgg", 0, "a GGML file (llama.cpp, old)", "use the repo that it was converted from"),
    _Kind(b"fmgg", 0, "a GGML file (llama.cpp, old)", "use the repo that it was converted from"),
    _Kind(b"\x89HDF\r\n\x1a\n", 0, "an HDF5 file (Keras .h5)", _CONVERT),
    _Kind(b"\x93NUMPY", 0, "a NumPy .npy array", _CONVERT),
    _Kind(b"TFL3", 4, "a TensorFlow Lite model", _CONVERT),
    _Kind(b"\x1f\x8b", 0, "a gzip archive", _UNPACK),
    _Kind(b"BZh", 0, "a bzip2 archive", _UNPACK),
    _Kind(b"\xfd7zXZ\0", 0, "an xz archive", _UNPACK),
    _Kind(b"\x28\xb5\x2f\xfd", 0, "a zstd archive", _UNPACK),
    _Kind(b"7z\xbc\xaf\x27\x1c", 0, "a 7z archive", _UNPACK),
    _Kind(b"PK\x05\x06", 0, "an empty zip archive", REFETCH),
    _Kind(b"ustar", 257, "a tar archive", _UNPACK),
)

_NAMES = (
    (r"\.ckpt-\d+\.|\.ckpt\.|\.data-\d{5}-of-\d{5}$", "part of a TensorFlow checkpoint"),
    (r"\.onnx$", "an ONNX model"),
    (r"\.msgpack$", "a Flax msgpack file"),
    (r"\.mlmodel$|\.pb$", "a protobuf model"),
)

# The members of the archives that torch wrote before 0.1.10.
_TAR_MEMBERS = (b"sys_info\0", b"pickle\0", b"storages\0", b"tensors\0")


def explain(file: SourceFile, head: bytes) -> ShardloadError:
    """Return the error for a file of no known checkpoint format; `head` is its first 512 bytes."""
    return (
        _broken(file, head)
        or _known(file, head)
        or _text(file, head)
        or UnsupportedError(
            f"{file.name} is of no format that shardload knows",
            where=f"{file.name}: {file.size:,} bytes, beginning with {head[:16]!r}",
            cure="pass a .safetensors file, or a .bin/.pth file that torch.save wrote",
        )
    )


def _broken(file: SourceFile, head: bytes) -> ShardloadError | None:
    """Judge what should have been a checkpoint and is not."""
    if not head:
        return CorruptError(f"{file.name} is empty", where=file.name, cure=REFETCH)
    if head.startswith(_LFS):
        size = re.search(rb"\nsize (\d{1,20})\n?", head)
        stands_for = f": it stands for a file of {int(size[1]):,} bytes" if size else ""
        return CorruptError(
            f"{file.name} is a Git-LFS pointer, not the file itself",
            where=file.name + stands_for,
            cure="run `git lfs pull` in the repo, or download the file with huggingface_hub",
        )
    if not head.strip(b"\0"):
        return CorruptError(
            f"{file.name} begins with {len(head)} zero bytes",
            where=file.name,
            cure=f"an unfinished download: {REFETCH}",
        )
    if file.name.endswith(".safetensors") and head[:2] != b"PK" and not _looks_like_text(head):
        return CorruptError(
            f"{file.name} is not a safetensors file, for all its name",
            where=f"{file.name}: after eight bytes of length it must have '{{', it begins with {head[:16]!r}",
            cure=REFETCH,
        )
    return None


def _known(file: SourceFile, head: bytes) -> ShardloadError | None:
    what = cure = None
    for kind in _KINDS:
        if head[kind.offset : kind.offset + len(kind.magic)] == kind.magic:
            what, cure = kind.what, kind.cure
    if what == "a tar archive" and head.startswith(_TAR_MEMBERS):
        what, cure = "in torch's tar format (before torch 0.1.10)", RESAVE
    if what is None and head[:1] == b"\x80" and head[1:2] in {b"\2", b"\3", b"\4", b"\5"}:
        what, cure = (
            "a Python pickle that torch.save did not write; shardload never unpickles such a file",
            RESAVE,
        )
    if what is None:
        what = next((what for pattern, what in _NAMES if re.search(pattern, file.name)), None)
        cure = _CONVERT
    if what is None:
        return None
    return UnsupportedError(f"{file.name} is {what}", where=file.name, cure=cure)


def _text(file: SourceFile, head: bytes) -> ShardloadError | None:
    if not _looks_like_text(head):
        return None
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        what = "an HTML page: a log-in or an error page was saved in place of the file"
        cure = "log in or check the address, then download the file again"
    elif start.startswith((b"{", b"[")):
        what = "JSON text (an index or a config), not weights"
        cure = "pass the folder that it lies in"
    else:
        what = "text, not weights"
        cure = REFETCH
    return CorruptError(
        f"{file.name} is {what}", where=f"{file.name}: begins with {quote(head[:40])}", cure=cure
    )


def _looks_like_text(head: bytes) -> bool:
    printable = sum(32 <= byte < 127 or byte >= 128 or byte in b"\t\r\n" for byte in head)
    if printable < len(head):
        return False
    # The cut at 512 bytes may fall inside a character.
    return any(_decodes(head[: len(head) - cut]) for cut in range(4))


def _decodes(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError:
        return False
    return True
