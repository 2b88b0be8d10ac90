"""Quantising: a target whose Linears get quantised weights; other tensors are placed as OnDevice does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from shardload.placement.device import OnDevice
from shardload.placement.taken import Taken

if TYPE_CHECKING:
    import torch

    from shardload.placement.target import Release


class Quantising(OnDevice):
    """What the targets of all quantisers share. `_linears` are the modules whose weights are quantised, by slot."""

    _linears: dict[str, nn.Linear]

    def begin(self, key: str, stored: torch.Tensor, release: Release | None) -> torch.Tensor:
        """Return what `place` returns; quantised weights are complete at once."""
        if key not in self._linears:
            return super().begin(key, stored, release)
        placed = self.place(key, stored)
        if release is not None:
            release(0, stored.nbytes)
        return placed

    def put(self, module: nn.Module, name: str, tensor: torch.Tensor) -> None:
        """Assign a tensor; a quantised one as it is."""
        if isinstance(tensor, nn.Parameter) and type(tensor) is not nn.Parameter:
            module._parameters[name] = tensor
        else:
            super().put(module, name, tensor)

    def _held(self, nbytes: int) -> Taken:
        """Return what a quantised weight of so many bytes takes."""
        return Taken(anonymous=nbytes) if self.device.type == "cpu" else Taken(device=nbytes)
