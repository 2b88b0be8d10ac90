"""The format that torch.save wrote before torch 1.6: five pickles in a row, then the storages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload._system.file_kind import REFETCH, RESAVE
from shardload._system.gc_freeze import gc_frozen
from shardload.checkpoint.formats.pickle_machine import MAX_PICKLE_BYTES, EndOfDataError
from shardload.checkpoint.formats.state_dict import Block, header_of
from shardload.checkpoint.formats.text import quote
from shardload.checkpoint.formats.torch_pickle import TorchPickle
from shardload.checkpoint.formats.whole_module import load_beside_modules
from shardload.errors import CorruptError, UnsupportedError
from shardload.tensor_ref import DTYPE_BITS

if TYPE_CHECKING:
    from shardload.checkpoint.formats.format import Header
    from shardload.checkpoint.formats.torch_globals import Storage
    from shardload.checkpoint.sources.source import SourceFile

_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_PROTOCOL = 1001
_FIRST_READ = 1 << 16
_GROWTH = 16
# The sizes of quantised elements: their tensors can't be loaded, but others may follow them.
_QUANTISED = {"torch.QInt8Storage": 1, "torch.QUInt8Storage": 1, "torch.QInt32Storage": 4,
              "torch.QUInt4x2Storage": 1, "torch.QUInt2x4Storage": 1}  # fmt: skip


class TorchLegacyFormat:
    """Reads the header of a `.bin` or `.pth` file of torch before 1.6.

    The storages follow the pickles without alignment, so tensors may begin at any byte. The length of the pickles is
    not stored: a prefix of the file is read, and one sixteen times as long if it was too short.
    """

    name = "torch legacy"

    def matches(self, head: bytes) -> bool:
        """Whether `head` begins with the pickled magic number of these files."""
        return head.startswith(_MAGIC)

    @gc_frozen
    def read_header(self, file: SourceFile, state_dict: str | None = None) -> Header:
        """Read the pickles and the storages' lengths. Raises CorruptError, UnsupportedError or UnsafeError."""
        top, storages, keys, end = _read_growing(file, state_dict)
        blocks = _blocks(file, storages, keys, end)
        return header_of(top, file.name, lambda storage: _locate(blocks, storage), state_dict)


def _read_growing(file: SourceFile, wanted: str | None) -> tuple[Any, dict[str, Storage], list[str], int]:
    length = _FIRST_READ
    while True:
        try:
            return _read_pickles(file.read_at(0, length), file.name, wanted)
        except EndOfDataError:
            if file.size <= length:
                raise CorruptError(
                    "the file is truncated: it ends inside its pickle",
                    where=f"{file.name}: {file.size:,} bytes",
                    cure=REFETCH,
                ) from None
            if length >= MAX_PICKLE_BYTES:
                raise UnsupportedError(
                    f"the checkpoint's pickle is longer than {MAX_PICKLE_BYTES:,} bytes",
                    where=file.name,
                    cure=f"split it into shards, or {RESAVE}",
                    code="E-FORMAT",
                ) from None
        length = min(_GROWTH * length, MAX_PICKLE_BYTES)


def _read_pickles(
    data: bytes, where: str, wanted: str | None
) -> tuple[Any, dict[str, Storage], list[str], int]:
    protocol = TorchPickle(data, where, start=len(_MAGIC))
    if protocol.load() != _PROTOCOL:
        raise CorruptError("the version of the legacy format is unknown", where=where, cure=REFETCH)
    system = TorchPickle(data, where, start=protocol.position)
    facts = system.load()
    if type(facts) is not dict:
        raise CorruptError("the record of the writer's machine is no dict", where=where, cure=REFETCH)
    if facts.get("little_endian") is not True:
        raise UnsupportedError(
            "the checkpoint was written on a big-endian machine",
            where=where,
            cure=f"there, {RESAVE}",
            code="E-FORMAT",
        )

    def opened(aside: bool) -> TorchPickle:
        return TorchPickle(data, where, start=system.position, with_views=True, modules_aside=aside)

    state, top = load_beside_modules(opened, wanted)
    order = TorchPickle(data, where, start=state.position)
    keys = order.load()
    storages = state.storages()
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise CorruptError("the list of storages is no list of names", where=where, cure=REFETCH)
    if len(set(keys)) != len(keys) or set(keys) != storages.keys():
        raise CorruptError("the list of storages is not that of the state dict", where=where, cure=REFETCH)
    return top, storages, keys, order.position


def _blocks(
    file: SourceFile, storages: dict[str, Storage], keys: list[str], position: int
) -> dict[str, Block]:
    """Return the place of each storage: eight bytes with its number of elements, then the elements.

    The places follow from the pickle alone. The stored lengths are read as a check, but not over a network, where
    each would be one request.
    """
    blocks: dict[str, Block] = {}
    for key in keys:
        storage = storages[key]
        item = (
            DTYPE_BITS[storage.code] // 8
            if storage.code
            else _QUANTISED[storage.kind.replace("torch.cuda", "torch")]
        )
        blocks[key] = Block(position + 8, storage.numel * item)
        position += 8 + storage.numel * item
    if position > file.size:
        raise CorruptError(
            f"the file is truncated: {position - file.size:,} bytes are missing",
            where=f"{file.name}: has {file.size:,} bytes, its storages end at {position:,}",
            cure=REFETCH,
        )
    if position < file.size:
        raise CorruptError(
            f"{file.size - position:,} bytes lie beyond the last storage",
            where=f"{file.name}: has {file.size:,} bytes, its storages end at {position:,}",
            cure=REFETCH,
        )
    for key in () if file.is_remote else keys:
        written = int.from_bytes(file.read_at(blocks[key].start - 8, 8), "little", signed=True)
        if written != storages[key].numel:
            raise CorruptError(
                f"the storage {quote(key)} has {written:,} elements, the pickle gives it {storages[key].numel:,}",
                where=f"{file.name}, byte {blocks[key].start - 8:,}",
                cure=REFETCH,
            )
    return blocks


def _locate(blocks: dict[str, Block], storage: Storage) -> Block:
    block = blocks[storage.key]
    if not storage.offset and not storage.code:
        return block
    item = DTYPE_BITS[storage.code or "U8"] // 8
    # A view has only its own elements.
    return Block(block.start + storage.offset * item, storage.numel * item)
