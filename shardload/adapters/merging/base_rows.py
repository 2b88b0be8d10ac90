"""BaseRows: a tensor of a base that lies in no file as it is; rows of it are read, or decoded, when they are wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from shardload.dtypes import torch_dtype
from shardload.keymap.derived import Filled, leaves, narrowed, squeezed
from shardload.tensor_ref import TORCH_NAMES

if TYPE_CHECKING:
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.keymap import Derived


class BaseRows:
    """A tensor that is made of stored ones, with what a merge asks of a base: `rows[2:4]` is a tensor of two rows.

    Its files stay mapped as long as it is there.
    """

    device = torch.device("cpu")

    def __init__(self, checkpoint: Checkpoint, tensor: Derived | Filled) -> None:
        self._checkpoint, self._tensor = checkpoint, tensor
        self.shape, self.dtype = tensor.shape, torch_dtype(TORCH_NAMES[tensor.dtype])
        self._mapped = [checkpoint.read_derived(ref) for ref in dict.fromkeys(leaves(tensor))]

    def numel(self) -> int:
        """Return the number of elements."""
        return torch.Size(self.shape).numel()

    def __getitem__(self, index: int | slice) -> torch.Tensor | BaseRows:
        """Return some rows; for a number what lies at this place of the first dimension, which is not read yet."""
        if isinstance(index, int):
            return BaseRows(self._checkpoint, squeezed(narrowed(self._tensor, 0, index, 1), 0))
        start, stop, _ = index.indices(self.shape[0])
        part = narrowed(self._tensor, 0, start, stop - start)
        if isinstance(part, Filled):
            return torch.full(part.shape, part.value, dtype=self.dtype, device=self.device)
        return self._checkpoint.read_derived(part)
