"""MergedWeight: one weight that a merge changes, and the way in which it is restored."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload.adapters.merging.change import row_blocks
from shardload.errors import ShardloadError

if TYPE_CHECKING:
    from shardload._system.file_mapping import PrivateMappings
    from shardload.loading.provenance import Origin
    from shardload.tensor_ref import TensorRef


class Way(Enum):
    """How a weight is restored, and what that costs while it is merged."""

    MAPPED = "the base's tensor stays, which is a mapped file and takes no memory"
    SHARED = "the base's tensor stays, because other modules have it too"
    REREAD = "changed in place; its shard is read and cast again"
    COPY = "the base's tensor stays, in memory of its own"


@dataclass
class MergedWeight:
    """A weight of a module, before, during and after a merge. Made by `judge`."""

    name: str
    module: nn.Module
    attribute: str
    way: Way
    original: torch.Tensor | None
    origin: Origin | None = None
    ref: TensorRef | None = None
    dtype: torch.dtype = torch.float32
    nbytes: int = 0

    @classmethod
    def judge(
        cls,
        name: str,
        module: nn.Module,
        attribute: str,
        *,
        shared: bool,
        origin: Origin | None,
        stored_name: str,
        mappings: PrivateMappings,
    ) -> MergedWeight:
        """Decide how this weight will be restored: it is compared with its shard now."""
        parameter = _parameter(module, attribute)
        ref = None if origin is None else origin.refs.get(stored_name)
        made = cls(name, module, attribute, Way.COPY, parameter, origin, ref, parameter.dtype)
        made.nbytes = parameter.numel() * parameter.element_size()
        if shared:
            made.way = Way.SHARED
        elif origin is not None and ref is not None and _is_as_stored(parameter, origin, ref):
            expected = origin.expected(ref)
            place = mappings.place_of(parameter.data_ptr()) if parameter.device.type == "cpu" else None
            is_mapped = place is not None and expected is not None and place == (expected[0], ref.span.start)
            made.way = Way.MAPPED if is_mapped else Way.REREAD
        return made

    def begin(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the base's values and the memory for the merged ones; the same tensor where it changes in place."""
        base = _parameter(self.module, self.attribute).data
        if self.way is Way.REREAD:
            self.original = None
            return base, base
        self.original = _parameter(self.module, self.attribute) if self.way is Way.SHARED else base
        return base, torch.empty_like(base, memory_format=torch.contiguous_format)

    def put(self, merged: torch.Tensor) -> None:
        """Replace the base's values by the merged ones. The parameter stays the same object, unless others share it."""
        parameter = _parameter(self.module, self.attribute)
        if self.way is Way.SHARED:
            own = nn.Parameter(merged, requires_grad=parameter.requires_grad)
            self.module._parameters[self.attribute] = own
        elif self.way is not Way.REREAD:
            parameter.data = merged

    def can_be_undone(self) -> bool:
        """Return whether `undo` can still restore the values."""
        if self.way in {Way.REREAD, Way.MAPPED} and self.origin is not None and self.ref is not None:
            return self.origin.is_unchanged(self.ref)
        return self.original is not None  # a pickled model has no files; its mapped values were copied

    def undo(self) -> None:
        """Restore the base's values; a model that was moved or cast meanwhile keeps its device and dtype."""
        now = _parameter(self.module, self.attribute)
        if self.way is Way.SHARED:
            original: Any = self.original
            if original is not now:
                _follow(original, now)
                self.module._parameters[self.attribute] = original
        elif self.way is Way.REREAD:
            self._reread(now)
        elif self.original is not None:
            now.data = self.original.to(device=now.device, dtype=now.dtype)

    def _reread(self, parameter: nn.Parameter) -> None:
        if self.origin is None or self.ref is None:
            raise AssertionError(self.name)
        with self.origin.open(self.ref) as shard:
            stored = (
                shard.tensor(self.ref).view(parameter.shape) if not self.ref.shape else shard.tensor(self.ref)
            )
            for rows in row_blocks(tuple(parameter.shape)):
                parameter.data[rows] = stored[rows].to(self.dtype).to(parameter.device, parameter.dtype)
            shard.release(self.ref)


def _parameter(module: nn.Module, attribute: str) -> nn.Parameter:
    parameter = module._parameters[attribute]
    if parameter is None:
        raise AssertionError(attribute)
    return parameter


def _follow(original: nn.Parameter, now: nn.Parameter) -> None:
    if original.device != now.device or original.dtype != now.dtype:
        original.data = original.data.to(device=now.device, dtype=now.dtype)


def _is_as_stored(parameter: nn.Parameter, origin: Origin, ref: TensorRef) -> bool:
    """Return whether a weight equals, bit for bit, what its shard gives when it is read and cast as by the load."""
    if tuple(ref.shape) != tuple(parameter.shape) or not parameter.dim():
        return False
    try:
        with origin.open(ref) as shard:
            stored = shard.tensor(ref)
            same = all(
                torch.equal(_bits(stored[rows].to(parameter.dtype)), _bits(parameter.data[rows].cpu()))
                for rows in row_blocks(ref.shape)
            )
            shard.release(ref)
            return same
    except (ShardloadError, OSError):
        return False  # the shard is gone or has changed: a copy is kept instead


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits as integers, so that NaN equals itself and 0.0 differs from -0.0."""
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(width)
