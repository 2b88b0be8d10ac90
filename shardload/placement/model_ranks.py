"""The ranks that load or save a model together, and end that alike. Imports torch.distributed where there are some."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def ranks_of_model(model: object) -> tuple[int, ...]:
    """Return the ranks that a model lies over, all stages of a pipeline; none for one of one process."""
    if not isinstance(model, nn.Module):
        return ()
    from shardload.placement.sharded import ranks_of

    return ranks_of(model)


def ranks_of_call(arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the ranks that save a model together, by the arguments of the call."""
    return ranks_of_model(arguments["model"])


def ranks_asked(given: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the ranks that a call of from_pretrained asks for: a config or a plan without a mesh is for all."""
    mesh = given.get("device_mesh")
    if mesh is not None:
        from shardload.placement.mesh_ranks import with_this_rank

        return with_this_rank(sorted(mesh.mesh.flatten().tolist()))
    if given.get("tp_plan") is None and given.get("distributed_config") is None:
        return ()
    from torch import distributed

    return tuple(range(distributed.get_world_size()))
