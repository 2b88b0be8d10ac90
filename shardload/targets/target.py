"""What becomes of a stored tensor on its way into a model. A new target is one new file beside this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn


class Target(Protocol):
    """Decides dtype and place of each loaded tensor. Targets compose by wrapping one another."""

    def prepare(self, model: nn.Module) -> None:
        """Change the model's modules before anything is loaded (an int8 Linear for a Linear)."""

    def place(self, key: str, stored: torch.Tensor) -> torch.Tensor:
        """Return the tensor that fills `key`: `stored` itself where nothing has to change (zero copy)."""

    def finish(self, model: nn.Module) -> None:
        """Bring along what was not loaded, such as computed buffers, once all weights are in."""
