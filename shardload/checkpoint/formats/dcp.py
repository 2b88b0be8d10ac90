"""DcpFolder: a distributed checkpoint of torch, `.metadata` and `.distcp` files, read as one state dict.

`.metadata` says which tensors there are, in which pieces, and where each piece lies: in an archive of its own, as
torch.save writes it, somewhere in a `.distcp` file. A tensor in several pieces is a Joined of their refs. Neither
file is unpickled.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shardload._system.file_kind import REFETCH, RESAVE
from shardload._system.gc_freeze import gc_frozen
from shardload.checkpoint.formats.dcp_index import DcpIndex, Piece
from shardload.checkpoint.formats.envelope import OTHERS, Opened, count_tensors, is_dict, open_envelope
from shardload.checkpoint.formats.format import Header
from shardload.checkpoint.formats.state_dict import Block, header_in, tensor_ref
from shardload.checkpoint.formats.text import quote
from shardload.checkpoint.formats.torch_globals import PickledTensor, Unreadable
from shardload.checkpoint.formats.torch_zip import read_archive
from shardload.checkpoint.formats.zip_directory import ZipDirectory
from shardload.errors import CorruptError, UnsupportedError
from shardload.keymap.derived import Joined, as_view, join
from shardload.tensor_ref import Span, TensorRef, stored_shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from shardload.checkpoint.formats.dcp_index import Place
    from shardload.checkpoint.formats.torch_globals import Storage
    from shardload.checkpoint.sources.runs import Part
    from shardload.checkpoint.sources.source import Source, SourceFile
    from shardload.checkpoint.stage import Stage
    from shardload.keymap import Derived

_ANYWHERE = Block(0, 1 << 62)
_EXTRA = "_extra_state"  # how the names of all entries end that modules have and that are no tensors
_SHOWN = 8
_TAIL = 1 << 11  # the directory of an archive of one tensor has some 500 bytes


class DcpFolder:
    """One state dict of a distributed checkpoint, or a stage's part of it.

    `wanted` names one of several state dicts. Raises CorruptError, UnsafeError or UnsupportedError for a `.metadata`
    that is damaged or that asks for what no weights need, and what an envelope raises: see `open_envelope`.
    """

    format = "torch distributed"

    def __init__(self, source: Source, name: str, wanted: str | None, stage: Stage | None) -> None:
        self._index = DcpIndex(source.open(name), source.label)
        top, aside = _without_others(self._index.nested())
        keys: list[str] = []

        def locate(storage: Storage) -> Block:
            keys.append(storage.key)
            return _ANYWHERE  # where its pieces lie is read later, for those that are wanted

        header = header_in(open_envelope(top, name, wanted), name, locate)
        self._tensors = dict(zip([ref.name for ref in header.tensors], keys, strict=True))
        self._objects = header.objects
        if stage is not None:
            names = [*self._tensors, *self._objects]
            stage.require_some(filter(stage.holds, names), names, source.label)
            self._tensors = {entry: key for entry, key in self._tensors.items() if stage.holds(entry)}
            self._objects = {entry: value for entry, value in self._objects.items() if stage.holds(entry)}
        left = f"{name}: left aside: {', '.join(aside[:_SHOWN])}"
        more = f" and {len(aside) - _SHOWN} more" if len(aside) > _SHOWN else ""
        self._notes = (*header.notes, *([left + more] if aside else []))

    @property
    def files(self) -> tuple[str, ...]:
        """The files in which its pieces lie, sorted."""
        keys = {*self._tensors.values(), *_names_in(self._objects)}
        return tuple(sorted({place.file for (key, _), place in self._index.places.items() if key in keys}))

    @gc_frozen
    def read(self, files: Sequence[SourceFile]) -> tuple[list[Header], dict[str, Derived]]:
        """Read the header of every piece; return a header for each file, with its pieces, and the tensors by name."""
        by_name = {file.name: file for file in files}
        held: dict[str, list[TensorRef]] = {name: [] for name in by_name}
        tensors: dict[str, Derived] = {}
        for name, key in self._tensors.items():
            tensor = self._tensor(name, key, by_name, held)
            tensors[name] = as_view(tensor) or tensor
        objects = {name: self._object(value, by_name) for name, value in self._objects.items()}
        headers = [Header(tuple(refs)) for refs in held.values()]
        if headers:
            headers[0] = replace(headers[0], objects=objects, notes=self._notes)
        return headers, tensors

    def _tensor(
        self, name: str, key: str, files: Mapping[str, SourceFile], held: dict[str, list[TensorRef]]
    ) -> Derived:
        saved = self._index.tensors[key]
        assert saved.code is not None
        parts: list[tuple[Piece, Derived]] = []
        for piece in saved.pieces:
            place = self._index.places.get((key, piece.offsets))
            if place is None:
                raise self._index.corrupt(
                    f"nothing says where the piece {piece.offsets} of {quote(key)} lies"
                )
            window = _Window(files[place.file], place, key)
            top, blocks = read_archive(window, ZipDirectory(window, _TAIL))
            if type(top) is Unreadable:
                raise UnsupportedError(
                    f"{quote(key)} is {top.kind}", where=window.name, cure=RESAVE, code="E-FORMAT"
                )
            if type(top) is not PickledTensor or (tuple(top.shape), top.code) != (piece.sizes, saved.code):
                raise CorruptError(
                    f"the piece {piece.offsets} of {quote(key)} is not what {self._index.name} says: "
                    f"{saved.code} of shape {piece.sizes}",
                    where=window.name,
                    cure=REFETCH,
                )
            block = blocks[top.storage.key]
            at = Block(place.offset + block.start, block.nbytes)
            ref = tensor_ref(name, top, place.file, at)
            held[place.file].append(ref)
            parts.append((piece, ref))
        if 0 in saved.size:
            shard = parts[0][1].shard if parts else next(iter(files))
            return TensorRef(name, saved.code, stored_shape(saved.code, saved.size), shard, Span(0, 0))
        whole = _assembled(
            Piece((0,) * len(saved.size), saved.size), [p for p in parts if 0 not in p[0].sizes]
        )
        if whole is None:
            raise self._index.corrupt(
                f"the pieces of {quote(key)} do not make a tensor of shape {saved.size}"
            )
        return whole

    def _object(self, value: Any, files: Mapping[str, SourceFile]) -> Any:
        """Return an entry that is no tensor: each name in it is replaced by what is stored under that name."""
        if type(value) is dict:
            return {key: self._object(inner, files) for key, inner in value.items()}
        key = str(value, "utf-8")
        place = self._index.places.get((key, None))
        if place is None:
            raise self._index.corrupt(f"nothing says where {quote(key)} lies")
        window = _Window(files[place.file], place, key)
        top, blocks = read_archive(window, ZipDirectory(window, _TAIL))
        whole = Unreadable("an object that holds tensors") if blocks else top
        alone = Opened({key: whole}, (), (), ())
        return header_in(alone, window.name, lambda _: _ANYWHERE).objects[key]


class _Window:
    """One item of a `.distcp` file, read as a file of its own."""

    is_streamed = False

    def __init__(self, file: SourceFile, place: Place, key: str) -> None:
        self._file = file
        self._start = place.offset
        self.name = f"{file.name}: {quote(key)}"
        self.size = place.length
        self.is_remote = file.is_remote
        if place.offset + place.length > file.size:
            raise CorruptError(
                f"{file.name} ends before {quote(key)}",
                where=f"{file.name}: {file.size:,} bytes, the item ends at {place.offset + place.length:,}",
                cure=REFETCH,
            )

    def read_at(self, offset: int, length: int) -> bytes:
        return self._file.read_at(self._start + offset, max(0, min(length, self.size - offset)))

    def read_into(self, offset: int, memory: memoryview) -> None:
        self._file.read_into(self._start + offset, memory)

    def read_many(self, parts: Iterable[Part]) -> None:
        self._file.read_many((self._start + offset, memory) for offset, memory in parts)

    def local_path(self) -> Path:
        return self._file.local_path()


def _names_in(value: Any) -> Iterator[str]:
    if type(value) is dict:
        for inner in value.values():
            yield from _names_in(inner)
    else:
        yield str(value, "utf-8")


def _without_others(top: dict[Any, Any]) -> tuple[dict[Any, Any], list[str]]:
    """Leave aside what trainers save beside weights at the top: the optimizer's state and numbers, say."""
    if not any(type(value) is PickledTensor for value in top.values()):
        return top, []
    aside = {
        key
        for key, value in top.items()
        if key.startswith(("optimizer.", "optim."))
        or (is_dict(value) and key.lower().startswith(OTHERS))
        or not (
            key.endswith(_EXTRA) or type(value) in (PickledTensor, Unreadable) or count_tensors(value, 99)
        )
    }
    kept = {key: value for key, value in top.items() if key not in aside}
    if not any(type(value) is PickledTensor for value in kept.values()):
        return top, []
    return kept, [key for key in top if key in aside]


def _assembled(whole: Piece, parts: list[tuple[Piece, Derived]]) -> Derived | None:
    """Join pieces that tile a rectangle; None where they do not, or only in a way that no row of cuts makes."""
    if len(parts) == 1:
        return parts[0][1] if parts[0][0] == whole else None
    for dim in range(len(whole.sizes)):
        groups = list(_cut(parts, dim))
        if len(groups) < 2:
            continue
        made: list[Derived] = []
        at, end = whole.offsets[dim], whole.offsets[dim] + whole.sizes[dim]
        for start, stop, group in groups:
            piece = _narrowed(whole, dim, start, stop)
            part = _assembled(piece, group) if start == at else None
            if part is None:
                return None
            made.append(part)
            at = stop
        joined = join(made, dim) if at == end else None
        return joined if isinstance(joined, TensorRef | Joined) else None
    return None


def _cut(
    parts: list[tuple[Piece, Derived]], dim: int
) -> Iterator[tuple[int, int, list[tuple[Piece, Derived]]]]:
    """Yield the pieces in groups that lie one behind the other along a dimension, each with its bounds."""
    group: list[tuple[Piece, Derived]] = []
    start = stop = 0
    for part in sorted(parts, key=lambda each: each[0].offsets[dim]):
        first, last = part[0].offsets[dim], part[0].offsets[dim] + part[0].sizes[dim]
        if group and first >= stop:
            yield start, stop, group
            group = []
        if not group:
            start = stop = first
        group.append(part)
        stop = max(stop, last)
    if group:
        yield start, stop, group


def _narrowed(whole: Piece, dim: int, start: int, stop: int) -> Piece:
    offsets = (*whole.offsets[:dim], start, *whole.offsets[dim + 1 :])
    return Piece(offsets, (*whole.sizes[:dim], stop - start, *whole.sizes[dim + 1 :]))
