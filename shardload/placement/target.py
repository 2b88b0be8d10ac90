"""Target: what becomes of each slot of a model, decided on headers and carried out while the shards are read.

A load asks its target in this order:

1. `prepare` changes modules, before the model's slots are surveyed.
2. `claims` takes stored tensors out of the pairing by name: several for one slot, or one for several.
3. The model is judged. Whatever is claimed or paired must fit.
4. `part` narrows what is read for a slot, `result_bytes` and `claim_bytes` state what it takes.
5. `begin` (or `make`, for a claim) gives the tensor for a slot once its stored tensors are there; `put` assigns it.
6. `wait` returns when all that was begun is done; `finish` brings along what was not loaded; `close` ends threads.

A target overrides what it needs: every method here has the behaviour of a load without it. A new target is one new
file beside this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from shardload.placement.taken import NOTHING, Taken

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardload.keymap import Derived
    from shardload.model.shell import Slot
    from shardload.placement.spill import Spill

Release = Callable[[int, int], None]
"""Releases the bytes of a stored tensor between two offsets: they have been used. Called on any thread."""


@dataclass(frozen=True)
class Claim:
    """Stored tensors that together fill slots which the pairing by name would not give them.

    `stored` are names after the key map, by the role that the target gives each; `fills` are names of slots. A packed
    weight is `Claim({"values": "l.qweight", "scales": "l.scales"}, ("l.weight",))`, a weight that is quantised on the
    way is `Claim({"weight": "l.weight"}, ("l.weight", "l.weight_scale"))`.
    """

    stored: Mapping[str, str]
    fills: tuple[str, ...]


class Target:
    """Decides what becomes of each slot. Targets compose by wrapping one another."""

    spill: Spill | None = None
    beside: int = 0
    """Bytes of anonymous memory that stay, or are held during the load, beside all slots: an adapter's, say."""

    # Decided on headers ---------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module) -> None:
        """Change modules before slots are surveyed (an int8 Linear for a Linear); a refused load undoes it."""

    def claims(self, slots: Mapping[str, Slot], stored: Mapping[str, Derived]) -> Sequence[Claim]:  # noqa: ARG002
        """Return the stored tensors that this target takes out of the pairing by name."""
        return ()

    def part(self, key: str, tensor: Derived) -> Derived:  # noqa: ARG002
        """Return what is read for a slot: the stored tensor that was paired with it, or a part of that."""
        return tensor

    def result_bytes(self, key: str, tensor: Derived) -> Taken:  # noqa: ARG002
        """Return the bytes that the slot's tensor takes beside `tensor`; nothing where it is `tensor` itself.

        A target that makes other tensors and does not say what they take is counted as one that copies each of them,
        in four bytes an element at least.
        """
        kind = type(self)
        if kind.place is Target.place and kind.begin is Target.begin:
            return NOTHING
        return Taken(anonymous=max(tensor.nbytes, 4 * tensor.numel))

    def claim_bytes(self, claim: Claim, parts: Mapping[str, Derived]) -> Taken:
        """Return the bytes that the tensors of a claim's slots take beside the stored ones."""
        raise NotImplementedError(
            f"{type(self).__name__} makes claims and does not state what they take: {claim}"
        )

    # While shards are read ------------------------------------------------------------------------------------

    def place(self, key: str, stored: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Return the tensor for a slot: `stored` itself where nothing has to change (zero copy)."""
        return stored

    def begin(self, key: str, stored: torch.Tensor, release: Release | None) -> torch.Tensor:
        """Return what `place` returns, perhaps before it holds its values: nobody looks at them before `wait`.

        `release`, if there is one, is called for bytes of `stored` that were copied, and never for a tensor that is
        returned as it is.
        """
        placed = self.place(key, stored)
        if placed is not stored and release is not None:
            release(0, stored.nbytes)
        return placed

    def make(self, claim: Claim, parts: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Return the tensors of a claim's slots, by name, from its stored tensors, by role."""
        raise NotImplementedError(f"{type(self).__name__} makes claims and does not carry them out: {claim}")

    def put(self, module: nn.Module, name: str, tensor: torch.Tensor) -> None:
        """Assign a slot's tensor. A target whose slots hold subclasses of Tensor wraps it here."""
        old = module._parameters.get(name)
        value = tensor if old is None else nn.Parameter(tensor, requires_grad=old.requires_grad)
        if type(module).__setattr__ is nn.Module.__setattr__:
            table: dict[str, torch.Tensor] = module._buffers if old is None else module._parameters  # type: ignore[assignment]
            table[name] = value
        else:
            setattr(module, name, value)  # RNNs keep a list of their weights beside the parameters

    def wait(self) -> None:
        """Return when everything that was begun holds its values. Raises what went wrong."""

    def close(self) -> None:
        """Give up what is still being worked on, and threads; also called after an error."""

    def finish(self, model: nn.Module) -> None:
        """Bring along what was not loaded, such as computed buffers, once all weights are in."""
