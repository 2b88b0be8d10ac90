"""data_parallel: DistributedDataParallel over weights that stay the mapped file."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from shardload.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

_SAMPLE = 16  # elements at either end of a tensor
_SHOWN = 5


def data_parallel(model: nn.Module, process_group: Any = None, **options: Any) -> DistributedDataParallel:
    """Wrap a model, which every rank has loaded, by `DistributedDataParallel`, and keep mapped weights mapped.

        >>> import torch, shardload
        >>> from torch import distributed
        >>> distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        >>> shardload.data_parallel(torch.nn.Linear(4, 2)).module
        Linear(in_features=4, out_features=2, bias=True)
        >>> distributed.destroy_process_group()

    Collective. The first broadcast of `DistributedDataParallel` writes to every page of every weight. Here only what is
    trained is sent, from the first rank of the group. Of the rest the names, shapes, dtypes and the elements at either
    end are compared over the ranks. `options` are those of `DistributedDataParallel`. Raises UsageError where the ranks
    hold different models.
    """
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    from shardload._system.gathered import gathered

    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    told = gathered({name: _sum_of(tensor) for name, tensor in tensors.items()}, process_group)
    others = [name for name in {**told[0], **told[-1]} if len({str(each.get(name)) for each in told}) > 1]
    if others or any(each.keys() != told[0].keys() for each in told):
        raise UsageError(
            f"the ranks hold different models: {len(others)} of {len(tensors)} tensors differ",
            where=", ".join(others[:_SHOWN]),
            cure="load the same checkpoint on all ranks, or let DistributedDataParallel copy the first rank's",
        )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                distributed.broadcast(parameter, group=process_group, group_src=0)
    return DistributedDataParallel(model, process_group=process_group, init_sync=False, **options)


def _sum_of(tensor: torch.Tensor) -> list[Any]:
    """Return what of a tensor is compared; of one that is trained, no values."""
    import torch

    head = [list(tensor.shape), str(tensor.dtype), tensor.requires_grad]
    if tensor.requires_grad or not tensor.is_contiguous():
        return head
    flat = tensor.detach().view(-1)
    ends = torch.cat([flat[:_SAMPLE], flat[-_SAMPLE:]]).cpu().contiguous().view(torch.uint8)
    return [*head, zlib.crc32(bytes(ends.tolist()))]
