"""header_of: finds the state dict in a torch pickle, and turns its tensors into TensorRefs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from shardload._system.file_kind import REFETCH, RESAVE
from shardload.checkpoint.formats.aside import Aside
from shardload.checkpoint.formats.envelope import count_tensors, is_dict, open_envelope, unsupported
from shardload.checkpoint.formats.format import Header
from shardload.checkpoint.formats.text import quote
from shardload.checkpoint.formats.torch_globals import PickledDict, PickledKey, PickledTensor, Unreadable
from shardload.errors import CorruptError, UnsupportedError
from shardload.tensor_ref import DTYPE_BITS, Span, TensorRef, stored_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardload.checkpoint.formats.envelope import Opened
    from shardload.checkpoint.formats.torch_globals import Storage

_MAX_TENSORS = 200_000
_MAX_DIMS = 64  # torch's own limit for most operations
_MAX_INT64 = 2**63 - 1
_SHOWN = 5
# A pickle may contain one list a thousand times: the nodes of the tree are counted.
_MAX_NODES = 300_000
_MAX_DEPTH = 50


class Block(NamedTuple):
    """The bytes of one storage: its first byte in the file, and its size."""

    start: int
    nbytes: int


def header_of(top: Any, shard: str, locate: Callable[[Storage], Block], wanted: str | None = None) -> Header:
    """Return the header of a pickle whose top object is `top`.

    `locate` returns the bytes of a storage; `wanted` names one of several state dicts. Raises UnsupportedError for an
    object that is no state dict, or holds tensors that no TensorRef describes (all of them are named), CorruptError for
    a tensor outside its storage.
    """
    return header_in(open_envelope(top, shard, wanted), shard, locate)


def header_in(opened: Opened, shard: str, locate: Callable[[Storage], Block]) -> Header:
    """Return the header of a state dict that was found in its envelope: see `header_of`."""
    state = opened.state
    if len(state) > _MAX_TENSORS:
        raise UnsupportedError(
            f"a state dict of {len(state):,} entries in one file, the limit is {_MAX_TENSORS:,}",
            where=shard,
            cure=f"split it into shards, or {RESAVE}",
            code="E-FORMAT",
        )
    tensors: list[TensorRef] = []
    objects: dict[str, Any] = {}
    unreadable: list[str] = []
    faults = 0
    budget = [_MAX_NODES]
    met: set[str] = set()
    for key, value in _flat(state):
        if type(key) is not str:
            kind = key.kind if type(key) is PickledKey else f"a {type(key).__name__}"
            raise unsupported(f"a state dict with {kind} as a key", f"{shard}: {quote(key)}")
        if key in met:
            raise unsupported(
                "a state dict with one name twice, once in a dict of its own", f"{shard}: {quote(key)}"
            )
        met.add(key)
        if type(value) is PickledTensor:
            tensors.append(tensor_ref(key, value, shard, locate(value.storage)))
            continue
        try:
            objects[key] = _plain(value, budget)
        except _NotPlainError as error:
            faults += 1
            if faults <= _SHOWN:
                verb = "is" if type(value) in {Unreadable, Aside} else "holds"
                unreadable.append(f"{quote(key)} {verb} {error}")
    if faults:
        more = f"; and {faults - _SHOWN:,} more" if faults > _SHOWN else ""
        raise UnsupportedError(
            f"entries of the state dict can't be loaded: {'; '.join(unreadable)}{more}",
            where=shard,
            cure="save them as plain dense tensors",
            code="E-FORMAT",
        )
    versions = _versions(state, shard, budget)
    return Header(
        tuple(tensors),
        {},
        objects,
        versions,
        opened.path,
        opened.discarded,
        opened.others,
        tuple(opened.notes(shard)),
    )


def _flat(state: dict[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Yield the entries of a state dict; those of dicts in it that hold tensors come under names with dots."""
    for key, value in state.items():
        name = f"{prefix}{key}" if prefix else key
        if (
            depth < _MAX_DEPTH
            and type(key) is str
            and is_dict(value)
            and not key.endswith("_extra_state")
            and count_tensors(value, _MAX_DEPTH)
            and all(type(inner) is str for inner in value)
        ):
            yield from _flat(value, f"{name}.", depth + 1)
        else:
            yield name, value


# Tensors ------------------------------------------------------------------------------------------------------


def tensor_ref(name: str, tensor: PickledTensor, shard: str, block: Block) -> TensorRef:
    """Return the place of a pickled tensor whose storage lies in `block`. Raises CorruptError where it does not fit."""
    item = max(DTYPE_BITS[tensor.code] // 8, 1)
    shape, strides = tensor.shape, tensor.strides
    numel, last, packed, contiguous = 1, tensor.offset, 1, True
    if len(shape) > _MAX_DIMS:
        raise _outside(name, tensor, block, shard)
    for dim, stride in zip(reversed(shape), reversed(strides), strict=True):
        if type(dim) is not int or type(stride) is not int or dim < 0 or stride < 0:
            raise _outside(name, tensor, block, shard)
        numel *= dim
        last += (dim - 1) * stride
        if dim != 1:
            contiguous = contiguous and stride == packed
            packed *= dim
        if max(dim, stride, numel * item) > _MAX_INT64:
            raise _outside(name, tensor, block, shard)
    stored = stored_shape(tensor.code, shape)
    if numel == 0:
        if tensor.offset < 0:
            raise _outside(name, tensor, block, shard)
        return TensorRef(name, tensor.code, stored, shard, Span(block.start, block.start))
    if tensor.offset < 0 or (last + 1) * item > block.nbytes:
        raise _outside(name, tensor, block, shard)
    span = Span(block.start + tensor.offset * item, block.start + (last + 1) * item)
    return TensorRef(name, tensor.code, stored, shard, span, None if contiguous else strides)


def _outside(name: str, tensor: PickledTensor, block: Block, shard: str) -> CorruptError:
    return CorruptError(
        f"the tensor {quote(name)} does not lie inside its storage: shape {quote(tensor.shape)}, strides "
        f"{quote(tensor.strides)}, offset {quote(tensor.offset)} of {tensor.code} in {block.nbytes:,} bytes",
        where=f"{shard}: {quote(name)}",
        cure=REFETCH,
    )


# Everything else ----------------------------------------------------------------------------------------------


class _NotPlainError(Exception):
    """An object that is not plain Python data; the message says what it is."""


_KEY_NODES = 100  # for tuples of ints as keys: a file can choose many whose hashes clash
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray})


def _plain(value: Any, budget: list[int], depth: int = 0) -> Any:
    """Return a copy of plain dicts, lists, tuples, sets and scalars; at most budget[0] nodes."""
    budget[0] -= 1
    if budget[0] < 0 or depth > _MAX_DEPTH:
        raise _NotPlainError("more, or more deeply nested, objects than a state dict has")
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is set:
        budget[0] -= len(value)
        return value
    if kind is list:
        return [_plain(item, budget, depth + 1) for item in value]
    if kind is tuple:
        return tuple(_plain(item, budget, depth + 1) for item in value)
    if kind is Counter or is_dict(value):
        plain = {
            _plain_key(key, budget, depth) if type(key) is PickledKey else key: _plain(
                item, budget, depth + 1
            )
            for key, item in value.items()
        }
        return Counter(plain) if kind is Counter else plain
    if kind is Unreadable or kind is Aside:
        raise _NotPlainError(value.kind)
    raise _NotPlainError(
        "a tensor in a nested entry" if kind is PickledTensor else f"{_name(value)}, no tensor"
    )


def _plain_key(key: PickledKey, budget: list[int], depth: int) -> Any:
    budget[0] -= _KEY_NODES
    plain = _plain(key.value, budget, depth + 1)
    try:
        hash(plain)
    except TypeError:
        raise _NotPlainError("a key that can't be one") from None
    return plain


def _name(value: Any) -> str:
    return str(getattr(value, "name", f"a {type(value).__name__}"))


def _versions(state: dict[Any, Any], shard: str, budget: list[int]) -> dict[str, dict[str, Any]]:
    metadata = state.metadata if type(state) is PickledDict else None
    if metadata is None:
        return {}
    try:
        versions = _plain(metadata, budget)
    except _NotPlainError as error:
        raise UnsupportedError(
            f"the _metadata of the state dict holds {error}",
            where=shard,
            cure=f"remove it, or {RESAVE}",
            code="E-FORMAT",
        ) from None
    if not all(type(path) is str and type(entry) is dict for path, entry in versions.items()):
        raise CorruptError(
            "the _metadata of the state dict does not map modules to dicts", where=shard, cure=REFETCH
        )
    result: dict[str, dict[str, Any]] = versions
    return result
