"""An adapter whose weights lie over ranks: gathered on all of them. Imported only where there is a process group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from shardload._system.agreement import Agreement
    from shardload._system.ranks import OneProcess


def gathered(tensors: Mapping[str, torch.Tensor], ranks: Agreement | OneProcess) -> dict[str, torch.Tensor]:
    """Return the whole tensors of an adapter, on all ranks. Raises RanksError where these have others."""
    if ranks:
        headers = [
            (key, each.shape, each.dtype, getattr(each, "placements", None)) for key, each in tensors.items()
        ]
        ranks.require_same(
            "the tensors of the adapter",
            repr(sorted(headers, key=lambda each: each[0])),
            cure="shard each stage of a pipeline on a mesh of its own: DeviceMesh(kind, its ranks)",
        )
    try:
        return {
            key: each.full_tensor().detach() if isinstance(each, DTensor) else each
            for key, each in tensors.items()
        }
    except RuntimeError as error:
        if not ranks:
            raise
        raise ranks.lost(error) from error
