"""Target: decides from headers what each slot of a model gets, and makes that tensor while the shards are read.

A load asks its target in this order:

1. `prepare` changes modules, before the model's slots are surveyed.
2. `claims` takes stored tensors out of the pairing by name: several for one slot, or one for several.
3. The model and the checkpoint are compared. Every tensor that is claimed or paired must fit.
4. `part` reduces a stored tensor to the part that a slot needs; `result_bytes` and `claim_bytes` state memory.
5. `begin` (or `make`, for a claim) returns a slot's tensor once its stored tensors have been read; `put` assigns it.
6. `wait` returns when all tensors are complete; `finish` moves tensors that were not loaded; `close` ends threads.

A subclass overrides the methods that it needs; each method here does what a plain load does. A new target is one new
file beside this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import nn

from shardload.placement.taken import NOTHING, Taken

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardload.keymap import Derived
    from shardload.model.shell import Slot
    from shardload.placement.device_map import DeviceRow
    from shardload.placement.spill import Spill

Release = Callable[[int, int], None]
"""Releases the bytes between two offsets of a stored tensor: they are no longer needed. Called on any thread."""


@dataclass(frozen=True)
class Claim:
    """Stored tensors that a target takes together to fill slots, instead of the pairing by name.

    `stored` maps the role that a tensor has for the target to its name after the key map; `fills` are names of slots.
    For a packed weight: `Claim({"values": "l.qweight", "scales": "l.scales"}, ("l.weight",))`. For a weight that the
    load quantises: `Claim({"weight": "l.weight"}, ("l.weight", "l.weight_scale"))`.
    """

    stored: Mapping[str, str]
    fills: tuple[str, ...]


class Target:
    """Decides which tensor each slot gets. Targets compose: one target can wrap another."""

    spill: Spill | None = None
    beside: int = 0
    """Bytes of anonymous memory that the load takes beside all slots, for an adapter, say."""
    work_space: int = 0
    """Bytes of anonymous memory that the target computes in, beside tensors and their results."""
    notes: Sequence[str] = ()
    """What the report says of the load, once it is done."""
    devices: Sequence[DeviceRow] = ()
    """What lies on each device, where the target lays a model over several."""
    reads_files: bool = False
    """Whether stored tensors are read into memory, and none is a view of its file; set by the load after `prepare`."""
    dtypes: Mapping[str, torch.dtype] = MappingProxyType({})
    """The dtypes that the model itself wants by slot (`Shell.dtypes`), set by the load after `prepare`."""

    @property
    def assigns(self) -> bool:
        """Whether the target assigns tensors itself, of whatever class."""
        return type(self).put is not Target.put

    # Decided on headers ---------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module) -> None:
        """Change modules before the slots are surveyed (Linear to int8 Linear, say); a refused load reverts this."""

    def takes(self, stored: Mapping[str, Derived]) -> bool:  # noqa: ARG002
        """Whether the target takes packed weights as they are stored; else they are made plain, if a dtype is given."""
        return False

    def claims(self, slots: Mapping[str, Slot], stored: Mapping[str, Derived]) -> Sequence[Claim]:  # noqa: ARG002
        """Return claims: the stored tensors that this target takes out of the pairing, and the slots that they fill."""
        return ()

    def part(self, key: str, tensor: Derived) -> Derived:  # noqa: ARG002
        """Return the tensor to read for a slot: the stored tensor that was paired with the slot, or a part of it."""
        return tensor

    def result_bytes(self, key: str, tensor: Derived) -> Taken:  # noqa: ARG002
        """Return the bytes that the slot's tensor takes beside `tensor`; none when the slot gets `tensor` itself.

        A target that overrides `place` or `begin` but not this method is counted as if it copied every tensor, with at
        least four bytes per element.
        """
        kind = type(self)
        if kind.place is Target.place and kind.begin is Target.begin:
            return NOTHING
        return Taken(anonymous=max(tensor.nbytes, 4 * tensor.numel))

    def claim_bytes(self, claim: Claim, parts: Mapping[str, Derived]) -> Taken:
        """Return the bytes that the tensors of a claim's slots take beside the stored ones."""
        raise NotImplementedError(
            f"{type(self).__name__} makes claims, but does not define claim_bytes: {claim}"
        )

    # While shards are read ------------------------------------------------------------------------------------

    def place(self, key: str, stored: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Return the tensor for a slot: `stored` itself when nothing has to change (zero copy)."""
        return stored

    def begin(self, key: str, stored: torch.Tensor, release: Release | None) -> torch.Tensor:
        """Return the tensor that `place` returns, perhaps before it holds its values: none is read before `wait`.

        Call `release`, unless it is None, for bytes of `stored` that were copied; never when `stored` itself is
        returned.
        """
        placed = self.place(key, stored)
        if placed is not stored and release is not None:
            release(0, stored.nbytes)
        return placed

    def make(self, claim: Claim, parts: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Return the tensors of a claim's slots by slot name. `parts` are the claim's stored tensors by role."""
        raise NotImplementedError(f"{type(self).__name__} makes claims, but does not define make: {claim}")

    def put(self, module: nn.Module, name: str, tensor: torch.Tensor) -> None:
        """Assign a slot's tensor. Override this to wrap the tensor in a subclass of Tensor."""
        old = module._parameters.get(name)
        value = tensor if old is None else nn.Parameter(tensor, requires_grad=old.requires_grad)
        if type(module).__setattr__ is nn.Module.__setattr__:
            table: dict[str, torch.Tensor] = module._buffers if old is None else module._parameters  # type: ignore[assignment]
            table[name] = value
        else:
            setattr(module, name, value)  # RNNs keep a list of their weights beside the parameters

    def wait(self) -> None:
        """Return when all tensors from `begin` hold their values. Raises the first error."""

    def close(self) -> None:
        """Stop unfinished work and end threads; also called after an error."""

    def finish(self, model: nn.Module) -> None:
        """Treat tensors that were not loaded, such as computed buffers, once all weights have been loaded."""


class TargetAround(Target):
    """A target that changes some of what another target does, `inner`, and leaves the rest to it."""

    def __init__(self, inner: Target) -> None:
        self.inner = inner

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """The dtypes that the model itself wants: those of the target inside."""
        return self.inner.dtypes

    @dtypes.setter
    def dtypes(self, wanted: Mapping[str, torch.dtype]) -> None:
        self.inner.dtypes = wanted

    @property
    def reads_files(self) -> bool:
        """Whether stored tensors are read into memory, as for the target inside."""
        return self.inner.reads_files

    @reads_files.setter
    def reads_files(self, wanted: bool) -> None:
        self.inner.reads_files = wanted

    @property
    def notes(self) -> Sequence[str]:
        """What the target inside says."""
        return self.inner.notes

    @notes.setter
    def notes(self, said: Sequence[str]) -> None:
        self.inner.notes = said

    @property
    def devices(self) -> Sequence[DeviceRow]:  # type: ignore[override]
        """What the target inside lays on each device."""
        return self.inner.devices

    def prepare(self, model: nn.Module) -> None:
        """Let the target inside change modules."""
        self.inner.prepare(model)

    def claims(self, slots: Mapping[str, Slot], stored: Mapping[str, Derived]) -> Sequence[Claim]:
        """Return the claims of the target inside."""
        return self.inner.claims(slots, stored)

    def claim_bytes(self, claim: Claim, parts: Mapping[str, Derived]) -> Taken:
        """Return what the target inside states."""
        return self.inner.claim_bytes(claim, parts)

    def wait(self) -> None:
        """Wait for the target inside."""
        self.inner.wait()
