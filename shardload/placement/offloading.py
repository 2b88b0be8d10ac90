"""Offloading: a block runs on a device on which its weights do not lie; they are brought there while it runs.

The weights stay what they are, parameters of the module in the processor's memory or in a mapped file: optimizers,
`state_dict` and adapters see nothing else. Only while the block's own forward runs do its tables hold the tensors that
were brought, as in `torch.func.functional_call`; afterwards, and after an error, the parameters are back.

What gradients need:

- A brought tensor is a copy, so a gradient would end there. `_Brought` joins the two: it hands the gradient on to the
  parameter, on the parameter's own device. So adapters in offloaded blocks train where they lie, and a weight that is
  tied over two devices gets the sum of both.
- autograd saves a weight for the backward of its layer. It would keep every brought tensor alive, all blocks at once,
  which is what offloading is for to avoid. So while the block runs, a saved tensor that lies in a brought one's storage
  is saved as a note of where it came from, and is brought again when the backward wants it. The backward must see the
  weights of the forward: if the parameter was written to in between, it raises, as torch does for any saved tensor.
- Only the innermost pair of such hooks is asked by torch. Activation checkpoints (`use_reentrant=False`) are such a
  pair around the block: what is not a brought weight is handed on to them, so they keep or drop it as they would. In
  their second forward the block is brought again, and saves the same tensors in the same order.
- Buffers are brought too, and kept if they are saved. One that the forward wrote to (running statistics), or put
  another tensor in the place of, is written back.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardload.placement.machine import Fetched, Machine

_SOURCE = "_shardload_source"
_WRITTEN_TO = (
    "one of the variables needed for gradient computation has been modified by an inplace operation: {}, between its "
    "forward and its backward"
)


def stamp_of(tensor: torch.Tensor) -> tuple[int, int, torch.dtype]:
    """Return what changes when a tensor's values do: for a brought one, that of the parameter that it was copied from.

    A copy that is made at every forward may lie where an older one lay.
    """
    source: torch.Tensor = getattr(tensor, _SOURCE, tensor)
    return source.data_ptr(), source._version, tensor.dtype


class Ahead:
    """Fetches one block's tensors before it runs, for all hooks of a model."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._next: tuple[tuple[Any, ...], Sequence[torch.Tensor], Fetched] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle without what was fetched."""
        return type(self), (self.machine,)

    def begin(self, sources: Sequence[torch.Tensor], device: Any) -> None:
        """Begin to fetch tensors that the next call of `take` will want."""
        self.drop()
        self._next = _state(sources), sources, self._fetch(sources, device)

    def take(self, sources: Sequence[torch.Tensor], device: Any) -> list[torch.Tensor]:
        """Return tensors on a device: those that were fetched, where they are the same and were not written to."""
        if self._next is not None and self._next[0] == _state(sources):
            fetched = self._next[2]
            self._next = None
            return fetched()
        self.drop()
        return self._fetch(sources, device)()

    def drop(self) -> None:
        """Forget what was fetched and not taken, once it has arrived: the copies write to that memory until then."""
        if self._next is not None:
            fetched, self._next = self._next[2], None
            with suppress(Exception):  # of a copy that nobody wants
                fetched()

    def _fetch(self, sources: Sequence[torch.Tensor], device: Any) -> Fetched:
        with torch.inference_mode(mode=False):  # a tensor of that mode does not tell when it is written to
            return self.machine.fetch(sources, device)


def _state(sources: Sequence[torch.Tensor]) -> tuple[Any, ...]:
    return tuple((id(source), _version(source)) for source in sources)


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


class Visit:
    """One forward of a block: what was put into its tables, and what has to be put back."""

    def __init__(self, machine: Machine, device: Any, came_from: Any) -> None:
        self.machine, self.device, self.came_from = machine, device, came_from
        self._placed: list[tuple[nn.Module, dict[str, Any], str, torch.Tensor, torch.Tensor, int]] = []
        self._saving: saved_tensors_hooks | None = None

    def place(
        self, found: Sequence[Found], sources: Sequence[torch.Tensor], here: Sequence[torch.Tensor]
    ) -> None:
        """Put brought tensors into the tables in which their sources were found."""
        graph = torch.is_grad_enabled()
        of_source: dict[int, torch.Tensor] = {}
        for source, brought in zip(sources, here, strict=True):
            joined = graph and source.requires_grad
            made = _Brought.apply(source, brought, self.machine) if joined else brought  # type: ignore[no-untyped-call]
            setattr(made, _SOURCE, source)
            of_source[id(source)] = made
        for module, table, name, source in found:
            made = of_source[id(source)]
            self._placed.append((module, table, name, source, made, made._version))
            table[name] = made
        pairs = [(source, of_source[id(source)]) for source in sources if isinstance(source, nn.Parameter)]
        if graph and pairs and torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
            # Not inside of torch.func's transforms: these forbid such hooks.
            self._saving = _Saving(pairs, self.machine, self.device).hooks()
            self._saving.__enter__()

    def put_back(self) -> None:
        """Put the parameters and buffers back, with what the forward wrote to them."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.__exit__()
        while self._placed:
            module, table, name, source, made, version = self._placed.pop()
            now = table.get(name)
            table[name] = source
            with torch.no_grad():
                if now is made and (made._version != version or _is_statistic(module, table, source)):
                    source.copy_(made)
                elif now is not made and now is not None and table is module._buffers:
                    table[name] = self.machine.moved(now.detach(), self.machine.where(source))
            if type(module).__setattr__ is not nn.Module.__setattr__ and isinstance(source, nn.Parameter):
                setattr(module, name, source)  # an RNN keeps a list of its weights beside the table


def _is_statistic(module: nn.Module, table: dict[str, Any], source: torch.Tensor) -> bool:
    """Whether a forward may have written to a tensor though its version is the same: batch norm does that."""
    return module.training and table is module._buffers and source.is_floating_point()


Found = tuple[nn.Module, dict[str, Any], str, torch.Tensor]
"""A tensor in a table of a module."""


def found_elsewhere(modules: Iterator[nn.Module], machine: Machine, device: Any) -> list[Found]:
    """Return the parameters and buffers of modules that do not lie on a device."""
    tables: list[tuple[nn.Module, dict[str, Any]]] = [
        (module, table) for module in modules for table in (module._parameters, module._buffers) if table
    ]
    return [
        (module, table, name, tensor)
        for module, table in tables
        for name, tensor in table.items()
        if tensor is not None and not tensor.is_meta and machine.where(tensor) != device
    ]


class _Brought(torch.autograd.Function):
    """The brought tensor, as a function of the parameter that it is a copy of."""

    @staticmethod
    def forward(ctx: Any, source: torch.Tensor, brought: torch.Tensor, machine: Machine) -> torch.Tensor:
        ctx.machine, ctx.home = machine, machine.where(source)
        return brought.detach()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.machine.moved(gradient, ctx.home), None, None


class _Again:
    """A saved tensor that is brought again: its source, and how it lies in the brought one's storage."""

    def __init__(self, saved: torch.Tensor, source: torch.Tensor, saving: _Saving) -> None:
        self._source, self._version, self._saving = source, _version(source), saving
        self._place = saved.size(), saved.stride(), saved.storage_offset()

    def tensor(self) -> torch.Tensor:
        if _version(self._source) != self._version:
            raise RuntimeError(_WRITTEN_TO.format(f"an offloaded weight of shape {list(self._source.shape)}"))
        (brought,) = self._saving.machine.fetch([self._source], self._saving.device)()
        return brought.as_strided(*self._place)


class _Saving:
    """What autograd saves while a block runs. `outer` is the pair of hooks that would be asked without this one."""

    def __init__(
        self, brought: Sequence[tuple[torch.Tensor, torch.Tensor]], machine: Machine, device: Any
    ) -> None:
        self.machine, self.device = machine, device
        self._sources = {
            here.untyped_storage().data_ptr(): source for source, here in brought if here.numel()
        }
        self._outer = torch._C._autograd._top_saved_tensors_default_hooks(True)

    def hooks(self) -> saved_tensors_hooks:
        return saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, saved: torch.Tensor) -> Any:
        plain = type(saved) in (torch.Tensor, nn.Parameter) and saved.layout is torch.strided
        source = self._sources.get(saved.untyped_storage().data_ptr()) if plain and saved.numel() else None
        if source is not None:
            return _Again(saved, source, self)
        if self._outer is not None:
            return self._outer[1], self._outer[0](saved)
        # Detached: a saved output would hold the node that holds it, and Python's collector can't see that circle.
        return saved.detach(), _version(saved)

    def _unpack(self, packed: Any) -> torch.Tensor:
        if isinstance(packed, _Again):
            return packed.tensor()
        first, second = packed
        if not isinstance(first, torch.Tensor):
            return first(second)  # type: ignore[no-any-return]
        if _version(first) != second:
            raise RuntimeError(_WRITTEN_TO.format(f"a tensor of shape {list(first.shape)}"))
        return first
