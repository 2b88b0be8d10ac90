"""Which ranks a model lies over: those of the meshes of its DTensors. Imported only where a model has DTensors."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from torch import distributed

from shardload.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


_SHOWN = 16


def ranks_that_hold(tensors: Iterable[DTensor]) -> tuple[int, ...]:
    """Return the ranks that hold parts of one model with this one, in order: a stage of a pipeline has its own.

    Meshes are sliced from one: the ranks are those that differ from this one only along dimensions that some tensor
    lies along, so all of them find the same ranks. Those of meshes with nothing in common are all that there are.
    """
    tensors = list(tensors)
    roots: dict[tuple[int, ...], list[DeviceMesh]] = {}
    for mesh in {id(each.device_mesh): each.device_mesh for each in tensors}.values():
        roots.setdefault(_all_of(_root(mesh)), []).append(mesh)
    over = [frozenset(_hull(_root(meshes[0]), meshes)) for meshes in roots.values()]
    largest = max(over, key=len, default=frozenset())
    if not all(each <= largest for each in over):
        return ranks_over(tensors)
    return with_this_rank(sorted(largest))


def ranks_over(tensors: Iterable[DTensor]) -> tuple[int, ...]:
    """Return all ranks of the meshes from which the meshes of tensors were sliced, in order: all stages of a model."""
    meshes = {id(each.device_mesh): each.device_mesh for each in tensors}
    return with_this_rank(sorted({rank for mesh in meshes.values() for rank in _all_of(_root(mesh))}))


def with_this_rank(ranks: Iterable[int]) -> tuple[int, ...]:
    """Return the ranks of a model. Raises UsageError where this one holds nothing of it: torch lets it make one."""
    ranks, own = tuple(ranks), distributed.get_rank()
    if ranks and own not in ranks:
        shown = ", ".join(map(str, ranks[:_SHOWN])) + (" …" if ranks[_SHOWN:] else "")
        raise UsageError(
            "this rank is in no mesh of the model: it holds nothing of it",
            where=f"rank {own}; the model's are {shown}",
            cure="call this on the ranks of the model's mesh alone",
        )
    return ranks


def _hull(root: DeviceMesh, meshes: Iterable[DeviceMesh]) -> Iterable[int]:
    """Return the ranks of a mesh that differ from this one only along dimensions in which other meshes extend."""
    place = root.get_coordinate()
    if place is None:
        return _all_of(root)
    shape = tuple(root.mesh.shape)
    at = dict(zip(root.mesh.flatten().tolist(), product(*map(range, shape)), strict=True))
    extends = [False] * len(shape)
    for mesh in meshes:
        for rank in _all_of(mesh):
            if rank not in at:
                return _all_of(root)
            extends = [
                wide or mine != other for wide, mine, other in zip(extends, place, at[rank], strict=True)
            ]
    return [
        rank
        for rank, other in at.items()
        if all(wide or mine == each for wide, mine, each in zip(extends, place, other, strict=True))
    ]


def _root(mesh: DeviceMesh) -> DeviceMesh:
    whole: Callable[[], DeviceMesh] | None = getattr(mesh, "_get_root_mesh", None)
    return whole() if whole is not None else mesh


def _all_of(mesh: DeviceMesh) -> tuple[int, ...]:
    return tuple(mesh.mesh.flatten().tolist())
