"""An adapter whose weights lie over ranks: gathered on all of them, and written by the first."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn


@contextmanager
def gathered(
    model: nn.Module, tensors_of: Callable[[], dict[str, torch.Tensor]], timeout: float
) -> Iterator[tuple[dict[str, torch.Tensor], bool]]:
    """Yield the whole tensors of an adapter, and whether this process writes them.

    Where they lie over ranks, all of these have to come, and all end the block alike.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        yield tensors_of(), True
        return
    from torch.distributed.tensor import DTensor

    from shardload._system.agreement import together
    from shardload.placement.mesh_ranks import ranks_over
    from shardload.placement.sharded import into_parts

    into_parts(model)
    tensors = tensors_of()
    parts = {key: each for key, each in tensors.items() if isinstance(each, DTensor)}
    ranks = ranks_over(parts.values())
    whole = {**tensors, **{key: each.full_tensor().detach() for key, each in parts.items()}}
    if len(ranks) < 2:
        yield whole, True
        return
    with together(ranks, timeout) as agreed:
        agreed.require_same(
            "the tensors of the adapter",
            repr(sorted(whole)),
            cure="shard each stage of a pipeline on a mesh of its own: DeviceMesh(kind, its ranks)",
        )
        yield whole, agreed.is_first
        agreed.meet("the adapter is written")
