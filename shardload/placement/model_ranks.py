"""The ranks that a model lies over: they save it together, and end that alike."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardload._system.agreement import Agreement


@contextmanager
def together(model: nn.Module, timeout: float) -> Iterator[Agreement | None]:
    """Let the ranks that a model lies over, all stages of a pipeline, end the block alike; None for one process."""
    over: tuple[int, ...] = ()
    distributed = torch.distributed
    if isinstance(model, nn.Module) and distributed.is_available() and distributed.is_initialized():
        from shardload.placement.sharded import ranks_of

        over = ranks_of(model)
    if len(over) < 2:
        yield None
        return
    from shardload._system import agreement

    with agreement.together(over, timeout) as ranks:
        yield ranks
