"""The error for a file that is no checkpoint: what it is, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload._system.file_kind import REFETCH, FileKind, kind_of, looks_like_text, size_of_pointer
from shardload.checkpoint.formats.text import quote
from shardload.errors import CorruptError, ShardloadError, UnsupportedError

if TYPE_CHECKING:
    from shardload.checkpoint.sources.source import SourceFile

_JSON = FileKind(
    "JSON text (an index or a config), not weights", "pass the folder that it lies in", "E-CORRUPT"
)
_TEXT = FileKind("text, not weights", REFETCH, "E-CORRUPT")


def explain(file: SourceFile, head: bytes) -> ShardloadError:
    """Return the error for a file of no known checkpoint format; `head` is its first 512 bytes."""
    kind = kind_of(head, file.name) or (_text(head) if looks_like_text(head) else None)
    if kind is None:
        return _unknown(file, head)
    where = file.name
    if kind.code == "E-LFS" and (size := size_of_pointer(head)) is not None:
        where += f": it stands for a file of {size:,} bytes"
    elif kind.code != "E-FORMAT" and head.strip(b"\0"):
        where += f": begins with {quote(head[:40])}"
    error = UnsupportedError if kind.code == "E-FORMAT" else CorruptError
    return error(f"{file.name} is {kind.what}", where=where, cure=kind.cure, code=kind.code)


def _text(head: bytes) -> FileKind:
    return _JSON if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")) else _TEXT


def _unknown(file: SourceFile, head: bytes) -> ShardloadError:
    begins = f"it begins with {head[:16]!r}"
    if file.name.endswith(".safetensors"):
        return CorruptError(
            f"{file.name} has no safetensors header",
            where=f"{file.name}: after eight bytes of length it must have '{{', {begins}",
            cure=REFETCH,
        )
    return UnsupportedError(
        f"{file.name} is of no format that shardload knows",
        where=f"{file.name}: {file.size:,} bytes, {begins}",
        cure="pass a .safetensors file, or a .bin/.pth file that torch.save wrote",
        code="E-FORMAT",
    )
