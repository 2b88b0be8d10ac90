"""model_output: plans the Output of a state dict from headers; the tensors follow block by block."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from shardload._system.gc_freeze import gc_frozen
from shardload.checkpoint.shard import CODES
from shardload.errors import UnsupportedError, UsageError
from shardload.keymap.assembly import assemble, view_of
from shardload.model.wrapper_tensors import is_wrapper
from shardload.tensor_ref import Span, TensorRef, stored_shape
from shardload.writing.blocks import row_blocks
from shardload.writing.output import Output, OutputTensor, split_into_shards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from shardload.keymap import Derived, KeyMap


class OverRanks(Protocol):
    """Gathers the tensors of a state dict that lies over ranks, as they are written: see `collective`."""

    whole: dict[str, torch.Tensor]
    """The tensors that are gathered at this moment, by name."""
    made: dict[str, Derived]
    """What is written, by the name that it is written under."""

    def holds_part(self, key: str) -> bool:
        """Whether this process has a part of the tensor of that name."""

    def gathered(self, tensor: Derived) -> AbstractContextManager[None]:
        """Have in `whole`, in a block, what a tensor is made of."""


@gc_frozen
def model_output(
    state: Mapping[str, torch.Tensor],
    key_map: KeyMap,
    limit: int,
    beside: Mapping[str, bytes],
    over_ranks: OverRanks | None = None,
) -> Output:
    """Plan a checkpoint of a state dict, through the inverse of the key map, in shards of at most `limit` bytes.

    A tensor with several names is written once: the loader gives one copy to every name. `over_ranks` gathers tensors
    of which this process holds a part. Raises UsageError for tensors on meta and for a map whose inverse loses tensors,
    UnsupportedError for tensors that safetensors can't hold.
    """
    stored = _State(state, over_ranks)
    made: Mapping[str, Derived] = stored.refs
    if key_map.rules:
        made = key_map.invert().map_headers(stored.refs).tensors
        _refuse_loss(stored, key_map.map_headers(made).tensors)
    once: dict[Derived, str] = {}
    for name, tensor in made.items():
        once.setdefault(tensor, name)
    tensors = [_output_tensor(name, tensor, stored.read, over_ranks) for tensor, name in once.items()]
    shards, index = split_into_shards(tensors, limit)
    by_name = attrgetter("name")  # as the safetensors library orders them
    shards = tuple(replace(shard, tensors=tuple(sorted(shard.tensors, key=by_name))) for shard in shards)
    return Output(shards, index, beside)


def tensor_output(name: str, tensor: torch.Tensor) -> OutputTensor:
    """Plan one tensor in memory, under a name. Raises what `model_output` raises."""
    stored = _State({name: tensor})
    return _output_tensor(name, stored.refs[name], stored.read)


def _output_tensor(
    name: str,
    tensor: Derived,
    read: Callable[[TensorRef], torch.Tensor],
    over_ranks: OverRanks | None = None,
) -> OutputTensor:
    def blocks() -> Iterator[torch.Tensor]:
        with over_ranks.gathered(tensor) if over_ranks else nullcontext():
            for piece in row_blocks(tensor):
                # Conjugate and negative views are flags of a tensor, not in its bytes.
                yield assemble(piece, read).cpu().resolve_conj().resolve_neg().contiguous()

    if over_ranks is not None:
        over_ranks.made[name] = tensor
    return OutputTensor(name, tensor.dtype, tensor.shape, blocks)


class _State:
    """Tensors in memory, with headers as if each were stored in a file. The names of one tensor share one header."""

    def __init__(self, state: Mapping[str, torch.Tensor], over_ranks: OverRanks | None = None) -> None:
        self.refs: dict[str, TensorRef] = {}
        self._tensors: dict[str, torch.Tensor] = {} if over_ranks is None else over_ranks.whole
        self.is_cut = over_ranks is not None
        first: dict[int, TensorRef] = {}
        for key, value in state.items():
            _refuse_unwritable(key, value, cut=over_ranks is not None and over_ranks.holds_part(key))
            if id(value) not in first:
                code = CODES[value.dtype]
                span = Span(0, value.numel() * value.element_size())
                first[id(value)] = TensorRef(key, code, stored_shape(code, tuple(value.shape)), "", span)
                if over_ranks is None:
                    self._tensors[key] = value.detach()
            self.refs[key] = first[id(value)]

    def read(self, ref: TensorRef) -> torch.Tensor:
        """Return the tensor, or the view of it, that a header describes."""
        tensor, whole = self._tensors[ref.name], self.refs[ref.name]
        if ref is whole:
            return tensor
        if (
            ref.numel
            and ref.strides is None
            and ref.shape
            and ref.shape[1:] == whole.shape[1:] != whole.shape
        ):
            first, rest = divmod(ref.span.start, ref.nbytes // ref.shape[0])
            if not rest:  # whole rows: a tensor that is not contiguous is copied row block by row block
                return tensor[first : first + ref.shape[0]]
        return view_of(tensor, whole, ref)


def _refuse_unwritable(key: str, value: object, *, cut: bool = False) -> None:
    if not isinstance(value, torch.Tensor):
        raise UnsupportedError(
            f"{key} is a {type(value).__name__}, not a tensor", cure="safetensors holds only tensors"
        )
    if nn.parameter.is_lazy(value):
        raise UsageError(
            f"{key} has no shape before its module's first forward, so no values to save",
            cure="run the model once",
        )
    if value.is_meta:
        raise UsageError(f"{key} is on meta and has no values to save", cure="load the model first")
    if is_wrapper(value) and not cut:  # such as DTensor: the wrapper has no memory of its own
        raise UnsupportedError(
            f"{key} is a {type(value).__name__}, which wraps other tensors",
            cure="convert the model to plain tensors, then save it",
        )
    if value.is_nested:
        raise UnsupportedError(
            f"{key} is a nested tensor, and safetensors has no place for rows of several lengths"
        )
    if value.dtype not in CODES or CODES[value.dtype] == "C128" or str(value.layout) != "torch.strided":
        raise UnsupportedError(f"safetensors has no place for {key}: {value.dtype}, {value.layout}")


def _refuse_loss(state: _State, back: Mapping[str, Derived]) -> None:
    """Raise UsageError unless the map makes the model's tensors, padding included, from what would be written."""
    lost = []
    for key, ref in state.refs.items():
        found = back.get(key)
        if found == ref:
            continue
        padded = (
            not state.is_cut and found is not None and (found.shape, found.dtype) == (ref.shape, ref.dtype)
        )
        if not padded or not _same(assemble(found, state.read), state.read(ref)):  # type: ignore[arg-type]
            lost.append(key)
    if lost:
        raise UsageError(
            f"the key map does not lead back to {lost[0]!r}",
            where=f"{len(lost)} of the model's {len(state.refs)} tensors would be lost: {', '.join(lost[:5])}",
            cure="use the map that the model was loaded through, or save under the model's own names",
        )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(((one == other.cpu()) | (one.isnan() & other.cpu().isnan())).all())
