"""Sharded: the target for a model that torch has sharded over ranks; each slot gets this rank's part of its tensor.

The engine is torch's own: what `fully_shard`, `parallelize_module` or `distribute_tensor` made a DTensor stays one, on
the same mesh with the same placements. Imported only where a model has DTensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from torch.distributed.tensor import DTensor, Partial

from shardload.errors import UnsupportedError, UsageError
from shardload.model.module_loaders import engine_hooks
from shardload.model.shell import modules_of
from shardload.model.wrapper_tensors import PLAIN
from shardload.placement.cut import Cut, Split, cut_by
from shardload.placement.device import OnDevice
from shardload.placement.mesh_ranks import ranks_over
from shardload.placement.taken import Taken, padded
from shardload.placement.target import TargetAround
from shardload.tensor_ref import DTYPE_BITS, Span, TensorRef

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable, Mapping

    from torch.distributed.device_mesh import DeviceMesh

    from shardload.keymap import Derived
    from shardload.model.shell import Shell
    from shardload.placement.spill import Spill
    from shardload.placement.target import Claim, Release, Target


def sharded(shell: Shell, inner: Target | None, spill: str | os.PathLike[str] | None = None) -> Target | None:
    """Return the target that fills this rank's parts, or `inner` for a model that is not sharded.

    `inner` places the parts as it places whole tensors; None leaves them on the device of the model's mesh.
    """
    parts = parts_in(shell)
    if not parts:
        return inner
    padded = {
        path + name
        for path, module in modules_of(shell.model)
        if engine_hooks(module)
        for name in module._parameters
    }
    return Sharded(parts, inner or OnDevice(_device_of(parts.values(), shell.model), spill=spill), padded)


def parts_in(shell: Shell) -> dict[str, DTensor]:
    """Return the slots of a model that torch sharded, by name; none where it has tensors of other classes as well."""
    others = shell.tree.tensors - PLAIN - {DTensor, type(None)}
    if others or any("DataParallel" in kind.__name__ for kind in shell.tree.kinds):
        return {}
    return {
        path + name: tensor
        for path, module in modules_of(shell.model)
        for table in (module._parameters, module._buffers)
        for name, tensor in table.items()
        if isinstance(tensor, DTensor)
    }


def into_parts(model: nn.Module) -> None:
    """Let FSDP put this rank's parts in the place of the whole parameters that a forward left, if there are any."""
    for _, module in modules_of(model):
        if isinstance(module, FSDPModule):
            module.reshard()


def ranks_of(model: nn.Module) -> tuple[int, ...]:
    """Return all ranks that a model lies over, in order, all stages of a pipeline; none for one of one process."""
    into_parts(model)
    tensors = (
        tensor
        for _, module in modules_of(model)
        for table in (module._parameters, module._buffers)
        for tensor in table.values()
    )
    return ranks_over(tensor for tensor in tensors if isinstance(tensor, DTensor))


@dataclass(frozen=True)
class _Part:
    """A slot that is a DTensor: which part of the whole this rank holds, and how the part is made a DTensor again.

    `padded` is the shape of the parts of the first ranks: FSDP gives shorter ones the same memory.
    """

    cut: Cut
    padded: tuple[int, ...]
    mesh: DeviceMesh
    placements: tuple[object, ...]
    stride: tuple[int, ...]

    def seen(self) -> tuple[tuple[object, ...], tuple[int, ...]]:
        """Return how the tensor lies over ranks, which all ranks see alike, and this rank's place where it is cut.

        Ranks that have the same place hold the same part.
        """
        place = self.mesh.get_coordinate() or ()
        cut = [hasattr(placement, "dim") for placement in self.placements]
        kind = self.mesh.mesh_dim_names, tuple(self.mesh.shape), repr(self.placements)
        return kind, tuple(index for index, is_cut in zip(place, cut, strict=True) if is_cut)

    def around(self, local: torch.Tensor) -> DTensor:
        """Return the DTensor whose part on this rank is `local`."""
        with torch.no_grad():
            return DTensor.from_local(
                local,
                self.mesh,
                self.placements,  # type: ignore[arg-type]
                run_check=False,
                shape=torch.Size(self.cut.whole),
                stride=self.stride,
            )


class Sharded(TargetAround):
    """Gives each slot that is a DTensor this rank's part, and each other slot its whole tensor."""

    def __init__(self, tensors: Mapping[str, DTensor], inner: Target, padded: Collection[str] = ()) -> None:
        if inner.assigns:
            raise UsageError(
                f"{type(inner).__name__} assigns tensors itself, and the model's are parts that torch sharded",
                cure="fill the model first, then shard it",
            )
        super().__init__(inner)
        self.parts = {name: part_of(name, tensor) for name, tensor in tensors.items()}
        self._padded = padded  # names of parameters that FSDP manages
        self.look: Callable[[], None] = _nothing

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype that the inner target casts to."""
        return getattr(self.inner, "dtype", None)

    @property
    def spill(self) -> Spill | None:  # type: ignore[override]
        """The spill of the inner target."""
        return self.inner.spill

    @property
    def beside(self) -> int:  # type: ignore[override]
        """What the inner target takes beside all slots."""
        return self.inner.beside

    @property
    def work_space(self) -> int:  # type: ignore[override]
        """What the inner target computes in."""
        return self.inner.work_space

    def part(self, key: str, tensor: Derived) -> Derived:
        """Return this rank's part of a stored tensor."""
        own = self.parts.get(key)
        if own is None:
            return self.inner.part(key, tensor)
        return tensor if tensor.shape != own.cut.whole else own.cut.of(tensor)

    def result_bytes(self, key: str, tensor: Derived) -> Taken:
        """Return what the slot's part takes beside the stored bytes: columns of rows are copied together."""
        own = self.parts.get(key)
        if own is None:
            return self.inner.result_bytes(key, tensor)
        part = self.part(key, tensor)
        taken = self.inner.result_bytes(key, part)
        if not any(taken) and isinstance(part, TensorRef) and part.strides is not None:
            taken = Taken(anonymous=part.nbytes)
        if key not in self._padded or own.padded == own.cut.shape or taken.device:
            return taken
        nbytes = prod(own.padded) * DTYPE_BITS[part.dtype] // 8
        longest = TensorRef(part.name, part.dtype, own.padded, "", Span(0, nbytes))
        return padded(taken, self.inner.result_bytes(key, longest), nbytes)

    def make(self, claim: Claim, parts: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Return what the inner target makes, this rank's part of it."""
        made = self.inner.make(claim, parts)
        return {
            name: self.parts[name].cut.view(tensor).contiguous() if name in self.parts else tensor
            for name, tensor in made.items()
        }

    def place(self, key: str, stored: torch.Tensor) -> torch.Tensor:
        """Return the DTensor for a whole tensor that the class or one of its loaders made."""
        own = self.parts.get(key)
        if own is None:
            return self.inner.place(key, stored)
        if isinstance(stored, DTensor):
            return stored
        part = stored if own.cut.is_whole else own.cut.view(stored.view(own.cut.whole)).clone()
        return own.around(self.inner.place(key, part.contiguous()))

    def begin(self, key: str, stored: torch.Tensor, release: Release | None) -> torch.Tensor:
        """Return this rank's part, placed by the inner target; FSDP and gloo need it contiguous."""
        self.look()
        own = self.parts.get(key)
        if own is not None and stored.shape != own.cut.shape:
            stored = own.cut.view(stored.view(own.cut.whole))
        if own is not None and not stored.is_contiguous():
            extent = 1 + sum((n - 1) * step for n, step in zip(stored.shape, stored.stride(), strict=True))
            nbytes = extent * stored.element_size()
            stored = stored.contiguous()
            if release is not None:
                release(0, nbytes)
            release = None
        return self.inner.begin(key, stored, release)

    def put(self, module: nn.Module, name: str, tensor: torch.Tensor) -> None:
        """Assign a part as the DTensor that it is a part of."""
        old = module._parameters.get(name, module._buffers.get(name))
        if isinstance(old, DTensor) and not isinstance(tensor, DTensor):
            tensor = part_of(name, old).around(tensor)
        super().put(module, name, tensor)

    def close(self) -> None:
        """End the threads of the inner target."""
        self.inner.close()

    def finish(self, model: nn.Module) -> None:
        """Let the inner target move what was not loaded, then tell FSDP of its new parameters."""
        self.inner.finish(model)
        renew(model)


def _nothing() -> None:
    pass


def renew(model: nn.Module) -> None:
    """Tell FSDP which parameters its modules have now. All parts have to hold their values: FSDP copies some."""
    for _, module in modules_of(model):
        for hook in engine_hooks(module):
            hook(module, None)


def part_of(name: str, tensor: DTensor) -> _Part:
    """Return what a DTensor is a part of, and which. Raises UnsupportedError for placements that can't be filled."""
    mesh, shape = tensor.device_mesh, tuple(tensor.shape)
    splits = splits_of(mesh, tensor.placements, len(shape))
    even = splits is not None and all(
        shape[each.dim] % (each.pieces * each.count) == 0 for each in splits if each.pieces > 1
    )
    cut = cut_by(shape, splits) if splits is not None and even else None
    if splits is None or cut is None or cut.shape != tuple(tensor._local_tensor.shape):
        raise UnsupportedError(
            "a part of a tensor that is placed so can't be read from a checkpoint",
            where=f"{name}: {shape} as {tensor.placements} over {tuple(mesh.shape)}, "
            f"{tuple(tensor._local_tensor.shape)} here",
            cure="use placements of Shard and Replicate, as fully_shard and parallelize_module make them",
        )
    # FSDP's dimension of the mesh comes before that of tensor parallelism.
    first = cut_by(shape, (replace(splits[0], index=0), *splits[1:])) if splits else cut
    return _Part(cut, first.shape, mesh, tuple(tensor.placements), tuple(tensor.stride()))


def splits_of(mesh: DeviceMesh, placements: Iterable[object], dims: int) -> tuple[Split, ...] | None:
    """Return how placements split a tensor, as this rank sees it; None where it holds nothing, or a sum is due."""
    place, placements = mesh.get_coordinate(), tuple(placements)
    if place is None or any(isinstance(each, Partial) for each in placements):
        return None
    cut = [
        (getattr(each, "dim", 0) % (dims or 1), size, index, getattr(each, "split_factor", 1))
        for size, index, each in zip(mesh.shape, place, placements, strict=True)
        if hasattr(each, "dim")
    ]
    splits = []
    for number, (dim, size, index, factor) in enumerate(cut):
        before, after = (
            [each for each in cut[part] if each[0] == dim]
            for part in (slice(number), slice(number + 1, None))
        )
        outer = factor > 1 and factor == prod(each[1] for each in after)
        if factor > 1 and not outer and (before or after):
            return None
        splits.append(Split(dim, size, index, outer=outer, pieces=1 if outer else factor))
    return tuple(splits)


def _device_of(tensors: Iterable[DTensor], model: nn.Module) -> torch.device | str:
    kind = next(iter(tensors)).device_mesh.device_type
    if kind == "cpu" or _stays_on_cpu(model):
        return "cpu"
    return torch.device(kind, torch.get_device_module(kind).current_device())


def _stays_on_cpu(model: nn.Module) -> bool:
    """Whether FSDP keeps the parts of the model in host memory (CPUOffloadPolicy)."""
    groups = (
        module._get_fsdp_state()._fsdp_param_group
        for _, module in modules_of(model)
        if isinstance(module, FSDPModule)
    )
    return any(isinstance(group.offload_policy, CPUOffloadPolicy) for group in groups if group is not None)
