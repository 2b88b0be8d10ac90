"""What becomes of a stored tensor on its way into a model. A new target is one new file beside this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shardload.placement.spill import Spill


Release = Callable[[int, int], None]
"""Lets go of the bytes of a stored tensor between two offsets: they have been used. Called on any thread."""


class Target(Protocol):
    """Decides dtype and place of each loaded tensor. Targets compose by wrapping one another."""

    def prepare(self, model: nn.Module) -> None:
        """Change the model's modules before anything is loaded (an int8 Linear for a Linear)."""

    def place(self, key: str, stored: torch.Tensor) -> torch.Tensor:
        """Return the tensor that fills `key`: `stored` itself where nothing has to change (zero copy)."""

    def finish(self, model: nn.Module) -> None:
        """Bring along what was not loaded, such as computed buffers, once all weights are in."""


@runtime_checkable
class OverlappingTarget(Target, Protocol):
    """A target that may still work on one tensor while the next is placed."""

    def begin(self, key: str, stored: torch.Tensor, release: Release | None) -> torch.Tensor:
        """Return what `place` returns, perhaps before it holds its values: nobody looks at them before `wait`.

        `release`, if there is one, is called for bytes of `stored` that were copied, and never for a tensor that is
        returned as it is.
        """

    def wait(self) -> None:
        """Return when everything that was begun holds its values. Raises what went wrong."""

    def close(self) -> None:
        """Give up what is still being worked on, and threads; also called after an error."""


@runtime_checkable
class AccountedTarget(Target, Protocol):
    """A target that can say beforehand what it will take."""

    spill: Spill | None

    def result_bytes(self, key: str, dtype: torch.dtype, numel: int) -> tuple[int, int]:
        """Return what the tensor that fills `key` takes beside its file: bytes of anonymous memory, and of the spill's.

        `dtype` and `numel` are those of the stored one.
        """
