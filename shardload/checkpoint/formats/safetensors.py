"""The safetensors format: eight bytes of length, a JSON header, then the tensors without gaps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload._system.file_kind import REFETCH
from shardload._system.gc_freeze import freeze_more, gc_frozen
from shardload._system.json_text import JsonTooLargeError, NoJsonError, parse_json
from shardload.checkpoint.formats.format import Header
from shardload.checkpoint.formats.text import quote
from shardload.errors import CorruptError, UnsupportedError, UsageError, Wording, keyword
from shardload.tensor_ref import DTYPE_BITS, Span, TensorRef

if TYPE_CHECKING:
    from shardload.checkpoint.sources.source import SourceFile

MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own reader
_FIRST_READ = 1 << 16  # most headers are shorter, and then one request is enough
_BLANKS = b" \t\n\r"  # those of JSON
_MAX_DIM = 2**63 - 1
# complex128 has a code because pickles have it; this format does not.
_DTYPE_BITS = {code: bits for code, bits in DTYPE_BITS.items() if code != "C128"}


_LONG = 2**17  # bytes of a header, some 1,000 tensors: from here on the collector costs time


class SafetensorsFormat:
    """Reads the header of a `.safetensors` file.

    Every header that is accepted here is accepted by the safetensors library with the same names, shapes, dtypes and
    offsets. Also refused: duplicate keys, unknown fields, dimensions above 2^63-1.
    90,000 tensors take 0.4 s on one core, half of it the JSON.
    """

    name = "safetensors"

    def matches(self, head: bytes) -> bool:
        """Whether `head` is a length below 2^40, then blanks (some writers align the data by them) and a brace."""
        start = head[8:].lstrip(_BLANKS)[:1]
        return head[5:8] == b"\0\0\0" and (start == b"{" or (not start and len(head) > 8))

    def read_header(self, file: SourceFile, state_dict: str | None = None) -> Header:
        """Read and check the header. Raises CorruptError, or UnsupportedError for a header too large to parse."""
        if state_dict is not None:
            raise UsageError(
                Wording(
                    "{0} chooses among the state dicts of a file, and {1} holds one",
                    keyword("state_dict"),
                    file.name,
                ),
                where=file.name,
                cure=Wording("leave {0} out", keyword("state_dict")),
            )
        raw = _read_json(file)
        return (_header_of_many if len(raw) > _LONG else _header)(raw, file)


def _header(raw: bytes, file: SourceFile) -> Header:
    tree = _parse(raw, file.name)
    metadata = _metadata(tree.pop("__metadata__", {}), file.name)
    freeze_more()
    start = 8 + len(raw)
    tensors = tuple(_tensor(name, entry, file.name, start) for name, entry in tree.items())
    _check_layout(tensors, start, file)
    return Header(tensors=tensors, metadata=metadata)


_header_of_many = gc_frozen(_header)


def _corrupt(what: str, where: str) -> CorruptError:
    return CorruptError(f"not a valid safetensors header: {what}", where=where, cure=REFETCH)


def _read_json(file: SourceFile) -> bytes:
    first = file.read_at(0, _FIRST_READ)
    if len(first) < 8:
        raise _corrupt(f"the file has {len(first)} bytes, its length field alone takes 8", file.name)
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise _corrupt(f"it claims {length:,} bytes, the limit is {MAX_HEADER_BYTES:,}", file.name)
    if length < 2:
        raise _corrupt(f"it claims {length} bytes, and an empty one has 2", file.name)
    # A long header is read again from its start: joining it to the first read would hold 100 MB twice.
    raw = first[8 : 8 + length] if 8 + length <= len(first) else file.read_at(8, length)
    if len(raw) < length:
        missing = length - len(raw)
        raise _corrupt(
            f"it claims {length:,} bytes, and the file ends {missing:,} bytes before that", file.name
        )
    return raw


def _parse(raw: bytes, where: str) -> dict[str, Any]:
    if not raw.lstrip(_BLANKS).startswith(b"{"):
        raise _corrupt(f"it must start with '{{', it starts with {raw[:8]!r}", where)
    try:
        tree = parse_json(raw, where, entry_bytes=40, parse_int=_int_of(raw), constants=False)
    except JsonTooLargeError as error:
        raise UnsupportedError(
            f"the safetensors header can't be read: {error}",
            where=where,
            cure="split the checkpoint into more shards",
            code="E-FORMAT",
        ) from None
    except NoJsonError as error:
        raise _corrupt(str(error), where) from None
    if b"\\u" in raw and not _is_unicode(tree):
        raise _corrupt("a string holds half of a surrogate pair", where)
    assert isinstance(tree, dict)  # it starts with a brace
    return tree


def _int_of(raw: bytes) -> Any:
    """Return the parser of integers: the safetensors library refuses "-0", which Python reads as 0."""
    return _nonnegative if b"-0" in raw else int


def _nonnegative(text: str) -> int:
    if text.startswith("-"):
        raise ValueError(f"{text[:20]} is negative")
    return int(text)


def _is_unicode(tree: dict[str, Any]) -> bool:
    strings: list[Any] = [*tree]
    metadata = tree.get("__metadata__")
    if isinstance(metadata, dict):
        strings += [*metadata, *metadata.values()]
    try:
        for text in strings:
            if isinstance(text, str):
                text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _metadata(entry: Any, where: str) -> dict[str, str]:
    if entry is None:
        return {}
    if type(entry) is not dict or not all(type(value) is str for value in entry.values()):
        raise _corrupt("__metadata__ must map strings to strings", where)
    return entry


def _tensor(name: str, entry: Any, shard: str, start: int) -> TensorRef:
    try:
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError):
        entry = {}
    if len(entry) != 3:
        raise _corrupt("a tensor has exactly dtype, shape and data_offsets", f"{shard}: {quote(name)}")
    bits = _DTYPE_BITS.get(dtype) if type(dtype) is str else None
    if bits is None:
        raise _corrupt(f"unknown dtype {quote(dtype)}", f"{shard}: {quote(name)}")
    if type(shape) is not list or type(offsets) is not list or len(offsets) != 2:
        raise _corrupt("shape must be a list, data_offsets a list of two", f"{shard}: {quote(name)}")
    numel = 1
    for dim in shape:
        if type(dim) is not int or dim < 0:
            raise _corrupt(f"{quote(dim)} in the shape is not a whole number >= 0", f"{shard}: {quote(name)}")
        numel *= dim
        # Checked at each step: a later 0 must not hide an overflow, which other readers fail on.
        if dim > _MAX_DIM or numel > _MAX_DIM:
            raise _corrupt(
                f"the shape {quote(shape)} has more than 2^63-1 elements", f"{shard}: {quote(name)}"
            )
    begin, end = offsets
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise _corrupt(f"data_offsets {quote(offsets)} are not a span", f"{shard}: {quote(name)}")
    if numel * bits != 8 * (end - begin):
        raise _corrupt(
            f"{dtype} of shape {shape} takes {numel * bits / 8:,} bytes, "
            f"data_offsets give it {end - begin:,}",
            f"{shard}: {quote(name)}",
        )
    return TensorRef(name, dtype, tuple(shape), shard, Span(start + begin, start + end))


def _check_layout(tensors: tuple[TensorRef, ...], start: int, file: SourceFile) -> None:
    """Raise CorruptError unless the tensors fill the rest of the file: no gap, no overlap, no byte missing or left."""
    reached = start
    for ref in sorted(tensors, key=lambda ref: ref.span):
        if ref.span.start != reached:
            kind = "overlaps the tensor before it" if ref.span.start < reached else "leaves a gap before it"
            raise _corrupt(
                f"the span {ref.span.start - start:,}-{ref.span.stop - start:,} {kind}, which ends at "
                f"{reached - start:,}",
                f"{file.name}: {quote(ref.name)}",
            )
        reached = ref.span.stop
    if file.size < reached:
        raise CorruptError(
            f"the file is truncated: {reached - file.size:,} bytes are missing",
            where=f"{file.name}: has {file.size:,} bytes, its header describes {reached:,}",
            cure=REFETCH,
        )
    if file.size > reached:
        raise CorruptError(
            f"{file.size - reached:,} bytes follow the last tensor",
            where=f"{file.name}: has {file.size:,} bytes, its header describes {reached:,}",
            cure=REFETCH,
        )
