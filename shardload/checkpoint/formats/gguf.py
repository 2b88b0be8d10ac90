"""The GGUF format of llama.cpp: a table of values, a table of tensors, then the tensors, each aligned.

Source: the specification of versions 2 and 3. Packed types are listed as bytes, rows of blocks; what they are stands in
`metadata["gguf"]`, JSON with the `types` of packed tensors and the file's own `values` (long lists left out).
"""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

from shardload._system.file_kind import REFETCH
from shardload.checkpoint.formats.format import Header
from shardload.dequantise.gguf_blocks import KINDS
from shardload.errors import CorruptError, UnsupportedError, UsageError, Wording, keyword
from shardload.tensor_ref import DTYPE_BITS, Span, TensorRef

if TYPE_CHECKING:
    from shardload.checkpoint.sources.source import SourceFile

_PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
_PACKED = {kind.code: name for name, kind in KINDS.items()}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_CHUNK = 1 << 20  # bytes: of a vocabulary's tokens there are several
_MOST = 1 << 20  # entries of a table, and bytes of a text
_SHORT = 64  # entries of a list of texts that is kept
_LAYERS = (
    1024  # entries of a list of numbers that is kept: one for each layer, or for each pair of rotated rows
)


class GgufFormat:
    """Reads the tables of a `.gguf` file of version 2 or 3."""

    name = "gguf"

    def matches(self, head: bytes) -> bool:
        """Whether `head` begins a file of a known version; others are named by `file_kind`."""
        return head[:4] == b"GGUF" and head[4:8] in (b"\2\0\0\0", b"\3\0\0\0")

    def read_header(self, file: SourceFile, state_dict: str | None = None) -> Header:
        """Read both tables. Raises CorruptError, and UnsupportedError for a type that is not known."""
        if state_dict is not None:
            raise UsageError(
                Wording("{0} chooses among the state dicts of a file", keyword("state_dict")),
                where=file.name,
                cure=Wording("leave {0} out: a GGUF file holds one", keyword("state_dict")),
            )
        cursor = _Cursor(file)
        cursor.take(8)
        tensors, values = cursor.number("Q"), cursor.number("Q")
        if max(tensors, values) > _MOST:
            raise cursor.corrupt(f"says that it holds {tensors:,} tensors and {values:,} values")
        table = dict(cursor.entry() for _ in range(values))
        infos = [cursor.tensor() for _ in range(tensors)]
        alignment = table.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= _MOST:
            raise cursor.corrupt(f"says general.alignment {alignment!r}")
        for name, _, _, offset in infos:
            if offset % alignment:
                raise cursor.corrupt(
                    f"has {name!r} at byte {offset:,} of its tensors, aligned to {alignment}"
                )
        start = -(-cursor.at // alignment) * alignment
        refs, types = _refs(infos, start, cursor)
        content = {
            "types": types,
            "values": {name: value for name, value in table.items() if value is not None},
        }
        return Header(refs, {"format": "gguf", "gguf": json.dumps(content)})


def _refs(
    infos: list[tuple[str, tuple[int, ...], int, int]], start: int, cursor: _Cursor
) -> tuple[tuple[TensorRef, ...], dict[str, str]]:
    """Return the tensors in the order of their bytes, and the types of the packed ones."""
    refs: list[TensorRef] = []
    types: dict[str, str] = {}
    names: set[str] = set()
    for name, shape, code, offset in infos:
        if name in names:
            raise cursor.corrupt(f"names the tensor {name!r} twice")
        names.add(name)
        if code in _PLAIN:
            dtype, stored = _PLAIN[code], shape
        elif code in _PACKED:
            kind = KINDS[_PACKED[code]]
            if not shape or shape[-1] % kind.numbers:
                raise cursor.corrupt(
                    f"has {name!r} {list(shape)} as {_PACKED[code]}, blocks of {kind.numbers}"
                )
            dtype, stored = "U8", (*shape[:-1], shape[-1] // kind.numbers * kind.size)
            types[name] = _PACKED[code]
        else:
            raise UnsupportedError(
                f"{name} has GGUF's type {code}, which is not known", where=cursor.file.name
            )
        nbytes = prod(stored) * DTYPE_BITS[dtype] // 8
        span = Span(start + offset, start + offset + nbytes)
        if span.stop > cursor.file.size:
            raise cursor.corrupt(f"ends before {name!r}, which ends at byte {span.stop:,}")
        refs.append(TensorRef(name, dtype, stored, cursor.file.name, span))
    refs.sort(key=lambda ref: ref.span)
    for before, ref in pairwise(refs):
        if ref.span.start < before.span.stop:
            raise cursor.corrupt(f"has {ref.name!r} on bytes of {before.name!r}")
    return tuple(refs), types


class _Cursor:
    """Reads a file from its start, a few MB at a time. What does not fit is a CorruptError."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self.at = 0
        self._held, self._start = b"", 0

    def corrupt(self, why: str) -> CorruptError:
        """Return the error for a file whose tables can't be right."""
        return CorruptError(f"the GGUF file {why}", where=self.file.name, cure=REFETCH)

    def take(self, length: int) -> bytes:
        """Return the next bytes."""
        first = self.at - self._start
        if first + length > len(self._held):
            self._held = self.file.read_at(self.at, max(length, _CHUNK))
            self._start, first = self.at, 0
            if len(self._held) < length:
                raise self.corrupt(f"ends at byte {self.file.size:,}, inside its tables")
        self.at += length
        return self._held[first : first + length]

    def number(self, form: str) -> Any:
        """Return the next number."""
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def text(self) -> str:
        """Return the next text."""
        length = self.number("Q")
        if length > _MOST:
            raise self.corrupt(f"has a text of {length:,} bytes")
        return self.take(length).decode("utf-8", "replace")

    def entry(self) -> tuple[str, Any]:
        """Return the next name and its value; None for a list that is not kept."""
        return self.text(), self._value(self.number("I"))

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _LIST:
            raise self.corrupt(f"has a value of the kind {kind}")
        inner, count = self.number("I"), self.number("Q")
        if count > 64 * _MOST or inner == _LIST:
            raise self.corrupt(f"has a list of {count:,} entries of the kind {inner}")
        if inner in _SCALARS and count > _LAYERS:
            size = struct.calcsize(f"<{_SCALARS[inner]}")
            for rest in range(count * size, 0, -_CHUNK):
                self.take(min(rest, _CHUNK))
            return None
        found = [self._value(inner) for _ in range(count)]
        return found if count <= (_LAYERS if inner in _SCALARS else _SHORT) else None

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return the next tensor: name, shape as torch has it, type, offset."""
        name, count = self.text(), self.number("I")
        if count > 8:
            raise self.corrupt(f"has {name!r} with {count} dimensions")
        shape = tuple(self.number("Q") for _ in range(count))[::-1]
        if any(size > 1 << 40 for size in shape):
            raise self.corrupt(f"has {name!r} with the shape {list(shape)}")
        code, offset = self.number("I"), self.number("Q")
        return name, shape, code, offset
