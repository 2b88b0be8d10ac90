"""DcpIndex: what the `.metadata` of a distributed checkpoint says, before any other file is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardload._system.file_kind import REFETCH, RESAVE
from shardload._system.gc_freeze import gc_frozen
from shardload.checkpoint.formats.dcp_pickle import DcpPickle, Record
from shardload.checkpoint.formats.pickle_machine import MAX_PICKLE_BYTES, EndOfDataError
from shardload.checkpoint.formats.text import quote
from shardload.checkpoint.formats.torch_globals import (
    Global,
    PickledKey,
    PickledTensor,
    Storage,
    Unreadable,
)
from shardload.errors import CorruptError, UnsupportedError
from shardload.keymap.views import contiguous_strides

if TYPE_CHECKING:
    from shardload.checkpoint.sources.source import SourceFile

_MOST = 1 << 62
_LONGEST_PATH = 64

Numbers = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one item lies: its file, its first byte in it, and its length."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle of a tensor: where it begins in the tensor, and its shape."""

    offsets: Numbers
    sizes: Numbers


@dataclass(frozen=True, slots=True)
class Saved:
    """One tensor: the code of its dtype (None for one without), its shape, and the pieces in which it is stored."""

    code: str | None
    size: Numbers
    pieces: tuple[Piece, ...]


class DcpIndex:
    """What `.metadata` says: `tensors` and `places` of items by their names, and `paths` in the dicts that were saved.

    A place is that of a piece by its offsets, or (None) that of an item that is no tensor. Raises CorruptError,
    UnsafeError or UnsupportedError.
    """

    @gc_frozen
    def __init__(self, file: SourceFile, label: str) -> None:
        self.name = file.name
        self.label = label
        self.tensors: dict[str, Saved] = {}
        self.places: dict[tuple[str, Numbers | None], Place] = {}
        self.paths = self._read(file)

    def nested(self) -> dict[Any, Any]:
        """Return the dicts that were saved, with stand-ins for tensors; other items are their names, as bytes."""
        top: dict[Any, Any] = {}
        for key, path in self.paths.items():
            saved = self.tensors.get(key)
            leaf: Any = key.encode()
            if saved is not None and saved.code is None:
                leaf = Unreadable("a tensor of a dtype without a code")
            elif saved is not None:
                storage = Storage(key, saved.code, "", 0)
                leaf = PickledTensor(storage, 0, saved.size, contiguous_strides(saved.size), saved.code or "")
            place = top
            for part in path[:-1]:
                inner = place.setdefault(part, {})
                place = inner if type(inner) is dict else place
            place[path[-1] if path[-1] not in place else key] = leaf
        return top

    def _read(self, file: SourceFile) -> dict[str, tuple[str, ...]]:
        """Read `.metadata`; return the path of each item in the dicts that were saved."""
        if file.size > MAX_PICKLE_BYTES:
            raise UnsupportedError(
                f"{self.name} has {file.size:,} bytes, the limit is {MAX_PICKLE_BYTES:,}",
                where=self.label,
                cure="save the model's weights without the optimizer's",
                code="E-FORMAT",
            )
        machine = DcpPickle(file.read_at(0, file.size), self.name)
        try:
            top = machine.load()
        except EndOfDataError:
            raise self.corrupt("it ends in the middle") from None
        if type(top) is not Record or not top.kind.endswith(".Metadata"):
            raise self.corrupt("it holds no Metadata")
        saved, places, paths = (
            top.get(part) for part in ("state_dict_metadata", "storage_data", "planner_data")
        )
        if type(saved) is not dict or type(places) is not dict or not saved:
            raise self.corrupt("it names no tensors")
        for index, info in places.items():
            self._add_place(index.value if type(index) is PickledKey else None, info)
        for key, entry in saved.items():
            if type(key) is not str or type(entry) is not Record:
                raise self.corrupt(f"{quote(key)} is no item")
            if entry.kind.endswith(".TensorStorageMetadata"):
                self.tensors[key] = self._saved(key, entry)
        return {key: _path(key, paths.get(key) if type(paths) is dict else None) for key in saved}

    def _add_place(self, index: Any, info: Any) -> None:
        fields = [info.get(part) for part in ("relative_path", "offset", "length")] if _is(info) else []
        key, at = (index.get("fqn"), index.get("offset")) if _is(index) else (None, None)
        if (
            type(key) is not str
            or [type(field) for field in fields] != [str, int, int]
            or min(fields[1:]) < 0
        ):
            raise self.corrupt(f"the place of {quote(key)} is none")
        if info.get("transform_descriptors"):
            raise UnsupportedError(
                f"the items are stored through an extension: {quote(info.get('transform_descriptors'))}",
                where=f"{self.label}/{self.name}: {quote(key)}",
                cure=f"save it without extensions, or {RESAVE}",
                code="E-FORMAT",
            )
        folder = self.name.rpartition("/")[0]
        path = f"{folder}/{fields[0]}" if folder else fields[0]
        place = Place(path, fields[1], fields[2])
        self.places[key, None if at is None else self._numbers(key, at)] = place

    def _saved(self, key: str, entry: Record) -> Saved:
        properties, pieces = entry.get("properties"), entry.get("chunks")
        state = properties.state if type(properties) is Record else None
        dtype = state[0] if type(state) is tuple and state else None
        if type(dtype) is not Global or not dtype.name.startswith("torch.") or type(pieces) is not list:
            raise self.corrupt(f"{quote(key)} has no dtype, or no pieces")
        size = self._numbers(key, entry.get("size"))
        found = tuple(
            Piece(self._numbers(key, piece.get("offsets")), self._numbers(key, piece.get("sizes")))
            for piece in pieces
            if _is(piece)
        )
        if any(len(piece.offsets) != len(size) or len(piece.sizes) != len(size) for piece in found):
            raise self.corrupt(f"a piece of {quote(key)} has other dimensions than the tensor")
        return Saved(dtype.code, size, found)

    def _numbers(self, key: str, value: Any) -> Numbers:
        if type(value) is not tuple or any(type(n) is not int or not 0 <= n < _MOST for n in value):
            raise self.corrupt(f"{quote(key)} has a size or an offset that is none")
        return value

    def corrupt(self, what: str) -> CorruptError:
        """Return the error for an index that contradicts itself or the files."""
        return CorruptError(
            f"the list of a distributed checkpoint is damaged: {what}",
            where=f"{self.label}/{self.name}",
            cure=REFETCH,
        )


def _is(value: Any) -> bool:
    return type(value) is Record


def _path(key: str, path: Any) -> tuple[str, ...]:
    """Return the keys that lead to an item: what the planner says where it flattened dicts, else its name."""
    if type(path) is not tuple or not 0 < len(path) <= _LONGEST_PATH:
        return (key,)
    if not all(type(part) in {str, int} for part in path):
        return (key,)
    return tuple(map(str, path))
