"""ZipDirectory: the entries of a zip archive as torch writes it, stored one after the other."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from shardload._system.file_kind import REFETCH, RESAVE
from shardload.checkpoint.formats.text import quote
from shardload.errors import CorruptError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardload.checkpoint.sources.source import SourceFile

MAX_ENTRIES = 200_000
_TAIL = 1 << 16
_GAP = 1 << 16  # bytes that are cheaper to read over than to ask for again
_END = Struct("<4s4H2LH").unpack
_END_SIZE = 22
_END64_AT = Struct("<4sLQL").unpack
_END64 = Struct("<4sQ2H2L4Q").unpack
_ENTRY = Struct("<4s6H3L5H2L")
_LOCAL = Struct("<4s5H3L2H")
_FULL32, _FULL16 = 0xFFFFFFFF, 0xFFFF
_ALIGNMENT = 64
_FOLDER = 0x10
_CIPHERED = 0x2061  # encrypted in one of three ways, or a patch of another file


class Entry(NamedTuple):
    """One entry: its name, its size in bytes, and the places of its local header and of the next one.

    `stored` is False when it is compressed, encrypted or a folder and can't be read. `described` says that crc
    and sizes follow the data, as torch's writer has it.
    """

    name: str
    size: int
    header: int
    limit: int
    stored: bool
    described: bool


class ZipDirectory:
    """The entries of an archive, by name.

    Raises CorruptError for a damaged directory, overlapping entries or the same name twice, UnsupportedError for
    more than 200,000 entries. `tail` bytes of the file's end are read once, and the directory too where it is longer.
    """

    def __init__(self, file: SourceFile, tail: int = _TAIL) -> None:
        self._file = file
        self._tail = tail
        self._held: list[tuple[int, bytes]] = []
        start, size, count = self._find_directory()
        self.entries = self._read_entries(start, size, count)

    def read(self, entry: Entry) -> bytes:
        """Return an entry's bytes."""
        begin = self.starts([entry])[entry.name]
        return self._get(begin, entry.size)

    def prefetch(self, entries: Iterable[Entry]) -> None:
        """Read small entries in as few requests as their places allow; `read` then needs none."""
        spans: list[list[int]] = []
        for entry in sorted(entries, key=lambda entry: entry.header):
            if spans and entry.header - spans[-1][1] <= _GAP:
                spans[-1][1] = entry.limit
            else:
                spans.append([entry.header, entry.limit])
        for begin, end in spans:
            if self._holding(begin, end - begin) is None:
                self._held.append((begin, self._file.read_at(begin, end - begin)))

    def starts(self, entries: Iterable[Entry]) -> dict[str, int]:
        """Return the first byte of each entry's data, from its local header.

        For a local file every local header is read (one `pread` each). For a remote file that would be one request
        each, so the start is computed from the directory: torch's writer leaves no room between entries. A computed
        start that is not aligned to 64 bytes, as torch aligns it, is not used: that header is read.
        """
        remote = self._file.is_remote
        found = {}
        for entry in entries:
            if not entry.stored:
                raise UnsupportedError(
                    f"the entry {quote(entry.name)} of the archive is compressed, encrypted or a folder",
                    where=self._file.name,
                    cure=f"torch.save does not compress; if it is a checkpoint, {RESAVE}",
                    code="E-FORMAT",
                )
            start = _aligned_start(entry) if remote else None
            found[entry.name] = self._start(entry) if start is None else start
        return found

    def _start(self, entry: Entry) -> int:
        name = entry.name.encode()
        raw = self._get(entry.header, _LOCAL.size + len(name))
        signature, _, flags, method, _, _, _, _, _, name_length, extra_length = _LOCAL.unpack_from(raw)
        start: int = entry.header + _LOCAL.size + name_length + extra_length
        if signature != b"PK\3\4" or method or flags & _CIPHERED or start + entry.size > entry.limit:
            raise self._corrupt(f"the local header of {quote(entry.name)} contradicts the directory")
        if name_length != len(name) or raw[_LOCAL.size :] != name:
            raise self._corrupt(f"the local header of {quote(entry.name)} has another name")
        return start

    def _get(self, offset: int, length: int) -> bytes:
        held = self._holding(offset, length)
        if held is not None:
            return held
        data = self._file.read_at(offset, length)
        if len(data) < length:
            raise self._corrupt(f"the file ends at byte {offset + len(data):,}, inside an entry")
        return data

    def _holding(self, offset: int, length: int) -> bytes | None:
        for begin, data in self._held:
            if begin <= offset and offset + length <= begin + len(data):
                return data[offset - begin : offset - begin + length]
        return None

    def _corrupt(self, what: str) -> CorruptError:
        return CorruptError(f"the zip archive is damaged: {what}", where=self._file.name, cure=REFETCH)

    def _find_directory(self) -> tuple[int, int, int]:
        """Return where the central directory begins, its size, and how many entries it has."""
        size = self._file.size
        begin = max(0, size - self._tail)
        tail = self._file.read_at(begin, size - begin)
        self._held.append((begin, tail))
        at = tail.rfind(b"PK\5\6")
        if at < 0 or len(tail) - at < _END_SIZE:
            raise CorruptError(
                "the zip archive is truncated: its directory, which comes last, is missing",
                where=f"{self._file.name}: {size:,} bytes",
                cure=REFETCH,
            )
        _, disk, first_disk, here, count, length, start, comment = _END(tail[at : at + _END_SIZE])
        if disk or first_disk or at + _END_SIZE + comment != len(tail):
            raise self._corrupt("it has several volumes, or bytes after its end")
        end = begin + at
        if (
            _FULL32 in (length, start)
            or _FULL16 in (here, count)
            or tail[max(0, at - 20) : at].startswith(b"PK\6\7")
        ):
            start, length, count, end = self._find_directory64(tail, at, begin)
        if start + length != end or count * _ENTRY.size > length:
            raise self._corrupt(f"a directory of {length:,} bytes at {start:,} does not end at {end:,}")
        if count > MAX_ENTRIES:
            raise UnsupportedError(
                f"the archive has {count:,} entries, the limit is {MAX_ENTRIES:,}",
                where=self._file.name,
                cure=f"split it into shards, or {RESAVE}",
                code="E-FORMAT",
            )
        return start, length, count

    def _find_directory64(self, tail: bytes, at: int, begin: int) -> tuple[int, int, int, int]:
        if at < 20:
            raise self._corrupt("its zip64 end is missing")
        signature, first_disk, where, disks = _END64_AT(tail[at - 20 : at])
        if first_disk or disks != 1:
            raise self._corrupt("it has several volumes")
        if signature != b"PK\6\7" or where < begin or where + 56 > begin + at - 20:
            raise self._corrupt("its zip64 end is in the wrong place")
        record = tail[where - begin : where - begin + 56]
        signature, _, _, _, disk, first_disk, here, count, length, start = _END64(record)
        if signature != b"PK\6\6" or disk or first_disk or here != count:
            raise self._corrupt("its zip64 end is malformed")
        return start, length, count, where

    def _read_entries(self, start: int, size: int, count: int) -> dict[str, Entry]:
        directory = self._get(start, size)
        found: list[tuple[str, int, int, bool, bool]] = []
        at = 0
        for _ in range(count):
            if at + _ENTRY.size > len(directory):
                raise self._corrupt("its directory ends in the middle")
            entry, at = self._entry(directory, at)
            found.append(entry)
        if at != len(directory):
            raise self._corrupt("its directory is longer than its entries")
        headers = sorted(header for _, _, header, _, _ in found)
        limits = dict(zip(headers, [*headers[1:], start], strict=True))
        if len(limits) != count:
            raise self._corrupt("two of its entries start at the same byte")
        entries: dict[str, Entry] = {}
        folded: set[str] = set()
        for name, packed, header, stored, described in found:
            limit = limits[header]
            # torch's reader ignores case.
            if name.lower() in folded:
                raise self._corrupt(f"it has the entry {quote(name)} twice")
            folded.add(name.lower())
            if header + _LOCAL.size + len(name) + packed > limit:
                raise self._corrupt(f"the entry {quote(name)} overlaps the next one")
            entries[name] = Entry(name, packed, header, limit, stored, described)
        return entries

    def _entry(self, directory: bytes, at: int) -> tuple[tuple[str, int, int, bool, bool], int]:
        fields = _ENTRY.unpack_from(directory, at)
        signature, _, _, flags, method, _, _, _, packed, size = fields[:10]
        name_length, extra_length, comment_length, disk = fields[10:14]
        attributes, header = fields[15:17]
        name_at = at + _ENTRY.size
        extra_at = name_at + name_length
        end = extra_at + extra_length + comment_length
        if signature != b"PK\1\2" or disk or end > len(directory):
            raise self._corrupt("an entry of its directory is malformed")
        try:
            name = directory[name_at:extra_at].decode()
        except UnicodeDecodeError:
            raise self._corrupt("the name of an entry is not UTF-8") from None
        if _FULL32 in (packed, size, header):
            extra = directory[extra_at : extra_at + extra_length]
            size, packed, header = self._sizes64(extra, (size, packed, header), name)
        # For a folder torch's reader returns uninitialised memory.
        stored = not (method or flags & _CIPHERED or packed != size or attributes & _FOLDER)
        return (name, packed, header, stored, bool(flags & 8)), end

    def _sizes64(self, extra: bytes, sizes: tuple[int, int, int], name: str) -> tuple[int, int, int]:
        at = 0
        while at + 4 <= len(extra):
            tag, length = (
                int.from_bytes(extra[at : at + 2], "little"),
                int.from_bytes(extra[at + 2 : at + 4], "little"),
            )
            field = extra[at + 4 : at + 4 + length]
            at += 4 + length
            if tag != 1:
                continue
            values = [int.from_bytes(field[i : i + 8], "little") for i in range(0, len(field) - 7, 8)]
            if len(values) < sizes.count(_FULL32):
                break
            full = [values.pop(0) if size == _FULL32 else size for size in sizes]
            return full[0], full[1], full[2]
        raise self._corrupt(f"the zip64 sizes of {quote(name)} are missing")


def _aligned_start(entry: Entry) -> int | None:
    """Return where an entry's data begins if it ends right before the next entry and is aligned, else None."""
    # Signature, crc and two sizes, of four or (zip64) eight bytes each; torch writes none for empty data.
    descriptor = 0
    if entry.described and entry.size:
        descriptor = 24 if max(entry.header, entry.size) >= _FULL32 else 16
    start = entry.limit - descriptor - entry.size
    room = start - (entry.header + _LOCAL.size + len(entry.name.encode()))
    return start if start % _ALIGNMENT == 0 and room >= 0 else None
