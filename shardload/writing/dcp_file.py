"""distributed_shards: plans the files of a distributed checkpoint, as torch.distributed.checkpoint reads them.

A `.distcp` file is a row of archives as torch.save writes them, one a tensor; `.metadata` says where each begins. Here
each takes a multiple of 64 bytes and so does the place of its data: such a checkpoint can be mapped, while torch's own
begin anywhere.
"""

from __future__ import annotations

import zlib
from math import prod
from struct import pack
from typing import TYPE_CHECKING

import torch

from shardload.checkpoint.formats.torch_globals import STORAGES
from shardload.checkpoint.index import DISTRIBUTED
from shardload.checkpoint.shard import DTYPES
from shardload.errors import UnsupportedError
from shardload.keymap.views import contiguous_strides
from shardload.tensor_ref import TORCH_NAMES, torch_shape
from shardload.writing.output import OutputShard, OutputTensor, grouped
from shardload.writing.pickle_writer import Call, Name, Object, Outside, pickled
from shardload.writing.shard_file import bytes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardload.writing.output import Blocks

_ALIGNMENT = 64
_PADDING = 0x4246  # "FB", as torch's writer marks room that aligns what follows
_FULL32 = 0xFFFFFFFF
_ROOT = "archive"
_LISTED = "torch.distributed.checkpoint.metadata"
_TYPED = {code: name for name, code in STORAGES.items() if code is not None}


def distributed_shards(
    tensors: Sequence[OutputTensor], limit: int
) -> tuple[tuple[OutputShard, ...], tuple[str, bytes]]:
    """Return the `.distcp` files, of at most `limit` bytes of tensors each, and `.metadata` with its name.

    Raises UnsupportedError for a dtype that torch lacks.
    """
    shards = tuple(
        OutputShard(f"__{number}_0.distcp", tuple(map(_archived, group)), header=b"")
        for number, group in enumerate(grouped(tensors, limit))
    )
    return shards, (DISTRIBUTED, _metadata({tensor.name: tensor for tensor in tensors}, shards))


def _metadata(tensors: dict[str, OutputTensor], shards: Sequence[OutputShard]) -> bytes:
    listed: dict[str, Object] = {}
    places: dict[Object, Object] = {}
    for shard in shards:
        offset = 0
        for item in shard.tensors:
            tensor = tensors[item.name]
            size = torch_shape(tensor.dtype, tensor.shape)
            start = (0,) * len(size)
            piece = {"offsets": _size(start), "sizes": _size(size)}
            chunks = [Object(Name(_LISTED, "ChunkStorageMetadata"), piece)]
            about = {"properties": _properties(tensor), "size": _size(size), "chunks": chunks}
            listed[item.name] = Object(Name(_LISTED, "TensorStorageMetadata"), about)
            index = {"fqn": item.name, "index": None, "offset": _size(start)}
            place = {"relative_path": shard.name, "offset": offset, "length": item.nbytes}
            places[Object(Name(_LISTED, "MetadataIndex"), index)] = Object(
                Name("torch.distributed.checkpoint.filesystem", "_StorageInfo"), place
            )
            offset += item.nbytes
    paths = {name: (name,) for name in listed}
    whole = {
        "state_dict_metadata": listed,
        "planner_data": paths,
        "storage_data": places,
        "storage_meta": None,
    }
    return pickled(Object(Name(_LISTED, "Metadata"), whole))


def _properties(tensor: OutputTensor) -> Object:
    layout = Call(Name("torch.serialization", "_get_layout"), ("torch.strided",))
    contiguous = Call(Name(_LISTED, "_MEM_FORMAT_ENCODING"), (0,))
    state = (Name("torch", TORCH_NAMES[tensor.dtype]), layout, False, contiguous, False)
    return Object(Name(_LISTED, "TensorProperties"), state)


def _size(size: tuple[int, ...]) -> Call:
    return Call(Name("torch", "Size"), (size,))


def _archived(tensor: OutputTensor) -> OutputTensor:
    """Return the archive of a tensor as one tensor of bytes."""
    before = _before(tensor)
    room = -(len(before) + tensor.nbytes + len(_after(tensor, before, 0, 0))) % _ALIGNMENT
    length = len(before) + tensor.nbytes + len(_after(tensor, before, 0, room))

    def blocks() -> Iterator[torch.Tensor]:
        yield _bytes(before)
        total = 0
        for block in _contents(tensor):
            total = zlib.crc32(bytes_of(block), total)
            yield block
        yield _bytes(_after(tensor, before, total, room))

    return OutputTensor(tensor.name, "U8", (length,), blocks)


def _contents(tensor: OutputTensor) -> Iterator[torch.Tensor]:
    content = tensor.content
    if not callable(content):
        raise TypeError("the content of an archive is given in blocks")
    blocks: Blocks = content
    yield from blocks()


def _bytes(raw: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


# The archive ------------------------------------------------------------------------------------------------------


def _small(tensor: OutputTensor) -> dict[str, bytes]:
    return {"data.pkl": _pickled(tensor), "byteorder": b"little", "version": b"3\n"}


def _before(tensor: OutputTensor) -> bytes:
    """Return all that comes before the tensor's bytes, which begin at a multiple of 64."""
    raw = b"".join(_local(name, zlib.crc32(data), len(data)) + data for name, data in _small(tensor).items())
    head = _local("data/0", 0, 0, described=True)
    padding = -(len(raw) + len(head) + 4) % _ALIGNMENT
    return raw + _local("data/0", 0, 0, described=True, extra=pack("<2H", _PADDING, padding) + b"Z" * padding)


def _after(tensor: OutputTensor, before: bytes, crc: int, room: int) -> bytes:
    """Return the sum of the tensor's bytes, then the directory, with `room` bytes more."""
    size = tensor.nbytes
    wide = size >= _FULL32 - len(before) - 24
    described = b"PK\7\x08" + pack("<LQQ" if wide else "<3L", crc, size, size)
    directory, at = b"", 0
    for name, data in _small(tensor).items():
        directory += _central(name, zlib.crc32(data), len(data), at)
        at += len(_local(name, 0, 0)) + len(data)
    directory += _central("data/0", crc, size, at, described=True, wide=wide)
    start, count = len(before) + size + len(described), len(_small(tensor)) + 1
    end = b""
    if wide:
        end = b"PK\6\6" + pack("<Q2H2L4Q", 44, 45, 45, 0, 0, count, count, len(directory), start)
        end += b"PK\6\7" + pack("<LQL", 0, start + len(directory), 1)
    end += b"PK\5\6" + pack("<4H2LH", 0, 0, count, count, len(directory), _FULL32 if wide else start, room)
    return described + directory + end + b" " * room


def _local(name: str, crc: int, size: int, *, described: bool = False, extra: bytes = b"") -> bytes:
    path = f"{_ROOT}/{name}".encode()
    flags = 0x808 if described else 0x800
    return (
        b"PK\3\4" + pack("<5H3L2H", 20, flags, 0, 0, 0, crc, size, size, len(path), len(extra)) + path + extra
    )


def _central(
    name: str, crc: int, size: int, at: int, *, described: bool = False, wide: bool = False
) -> bytes:
    path = f"{_ROOT}/{name}".encode()
    extra = pack("<2H2Q", 1, 16, size, size) if wide else b""
    told = _FULL32 if wide else size
    fields = (45 if wide else 20, 20, 0x808 if described else 0x800, 0, 0, 0, crc, told, told)
    return b"PK\1\2" + pack("<6H3L5H2L", *fields, len(path), len(extra), 0, 0, 0, 0, at) + path + extra


# The pickle of a tensor -------------------------------------------------------------------------------------------


def _pickled(tensor: OutputTensor) -> bytes:
    if tensor.dtype not in DTYPES:
        raise UnsupportedError(
            f"this torch has no dtype for {tensor.dtype}", where=tensor.name, cure="use a newer torch"
        )
    size = torch_shape(tensor.dtype, tensor.shape)
    place = (0, size, contiguous_strides(size), False, Call(Name("collections", "OrderedDict"), ()))
    if tensor.dtype in _TYPED:
        storage = Outside(
            ("storage", Name("torch", f"{_TYPED[tensor.dtype]}Storage"), "0", "cpu", prod(size))
        )
        return pickled(Call(Name("torch._utils", "_rebuild_tensor_v2"), (storage, *place)))
    storage = Outside(("storage", Name("torch.storage", "UntypedStorage"), "0", "cpu", tensor.nbytes))
    dtype = Name("torch", TORCH_NAMES[tensor.dtype])
    return pickled(Call(Name("torch._utils", "_rebuild_tensor_v3"), (storage, *place, dtype)))
