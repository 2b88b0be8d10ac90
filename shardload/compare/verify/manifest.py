"""Reads SHA256SUMS, the file that `sha256sum *.safetensors > SHA256SUMS` writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from shardload._system.file_errors import is_absent, unreadable
from shardload._system.file_kind import HEAD_BYTES, kind_of
from shardload.checkpoint.sources.digest import Digest
from shardload.checkpoint.sources.names import check_name
from shardload.errors import CorruptError, NotFoundError

if TYPE_CHECKING:
    import os

    from shardload.checkpoint.sources.source import Source

MANIFEST = "SHA256SUMS"
_LARGEST = 16 * 2**20
_GNU = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)")
_BSD = re.compile(r"SHA256 \((.+)\) = ([0-9a-fA-F]{64})()")


def read_manifest(source: Source, given: str | os.PathLike[str] | None = None) -> dict[str, Digest]:
    """Return the digests in a SHA256SUMS file, by file name: in `given`, else in the source's own, else none.

    Raises CorruptError for a malformed line or a file that is listed twice, UnsafeError for a name that leads out of
    the folder, NotFoundError when `given` does not exist.
    """
    if given is not None:
        path = Path(given)
        try:
            content = path.read_bytes()
        except OSError as error:
            if not is_absent(error):
                raise unreadable(path, error) from error
            raise NotFoundError(f"{path.name} can't be read: {error.strerror}", where=str(path)) from error
        return parse_manifest(content, path.name, str(path))
    if MANIFEST not in source.names():
        return {}
    file = source.open(MANIFEST)
    return parse_manifest(file.read_at(0, min(file.size, _LARGEST + 1)), MANIFEST, source.label)


def parse_manifest(content: bytes, by: str, where: str) -> dict[str, Digest]:
    """Parse a manifest in the format of the GNU or the BSD tools; return the digests by file name."""
    if len(content) > _LARGEST:
        raise CorruptError(
            f"{by} is larger than {_LARGEST:,} bytes, so it is not a list of hashes", where=where
        )
    found: dict[str, Digest] = {}
    kind = kind_of(content[:HEAD_BYTES], by) if content else None
    if kind is not None:
        raise CorruptError(f"{by} is {kind.what}", where=where, cure=kind.cure, code=kind.code)
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CorruptError(f"{by} is not UTF-8 text", where=where) from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, digest = _entry(line, number, by, where)
        check_name(name, where)
        if name in found:
            raise CorruptError(f"{by} lists {name!r} twice", where=f"{where}, line {number}")
        found[name] = Digest("sha256", digest, by)
    return found


def _entry(line: str, number: int, by: str, where: str) -> tuple[str, str]:
    if gnu := _GNU.fullmatch(line):
        escaped, digest, name = gnu.groups()
    elif bsd := _BSD.fullmatch(line):
        name, digest, escaped = bsd.groups()
    else:
        raise CorruptError(
            f"{by} has a line without a hash and a file name: {line[:80]!r}",
            where=f"{where}, line {number}",
            cure=f"write the file again: sha256sum *.safetensors > {MANIFEST}",
        )
    if escaped:
        name = re.sub(r"\\(.)", lambda m: {"n": "\n", "r": "\r"}.get(m[1], m[1]), name)
    return name.removeprefix("./"), digest.lower()
