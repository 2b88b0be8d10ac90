"""Fault: one disagreement between a model and a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shardload.tensor_ref import TORCH_NAMES

if TYPE_CHECKING:
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.keymap import Derived
    from shardload.model.shell import Slot

FaultKind = Literal["missing", "unexpected", "misshapen", "refused"]


@dataclass(frozen=True)
class Fault:
    """One disagreement about one tensor. `key` is its name in the model, `stored_key` its name in the checkpoint.

    Kinds: "missing": only the model has the tensor. "unexpected": only the checkpoint has it. "misshapen": both have
    it, with different shapes. "refused": the slot can't take it for the reason in `note`.
    """

    kind: FaultKind
    key: str
    stored_key: str | None = None
    model_shape: tuple[int, ...] | None = None
    model_dtype: str | None = None
    stored_shape: tuple[int, ...] | None = None
    stored_dtype: str | None = None
    shard: str | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fault as JSON data, without fields that are None."""
        return {name: value for name, value in vars(self).items() if value is not None}


def missing_fault(slot: Slot) -> Fault:
    """Return the fault of a slot that no stored tensor fills."""
    return Fault("missing", slot.name, model_shape=slot.shape, model_dtype=dtype_name(slot))


def unexpected_fault(key: str, ref: Derived) -> Fault:
    """Return the fault of a stored tensor that no slot takes."""
    stored_dtype = TORCH_NAMES.get(ref.dtype, ref.dtype)
    return Fault(
        "unexpected", key, ref.name, stored_shape=ref.shape, stored_dtype=stored_dtype, shard=ref.shard
    )


def shape_mismatch_fault(slot: Slot, ref: Derived) -> Fault:
    """Return the fault of a stored tensor whose slot has another shape."""
    return _paired("misshapen", slot, ref, None)


def refused_fault(slot: Slot, ref: Derived, note: str) -> Fault:
    """Return the fault of a stored tensor that its slot can't take, for the reason in `note`."""
    return _paired("refused", slot, ref, note)


def _paired(kind: FaultKind, slot: Slot, ref: Derived, note: str | None) -> Fault:
    return Fault(
        kind,
        slot.name,
        ref.name,
        model_shape=slot.shape,
        model_dtype=dtype_name(slot),
        stored_shape=ref.shape,
        stored_dtype=TORCH_NAMES.get(ref.dtype, ref.dtype),
        shard=ref.shard,
        note=note,
    )


def not_a_tensor_fault(key: str, stored: str, checkpoint: Checkpoint) -> Fault:
    """Return the fault of an entry of a pickled state dict that is not a tensor."""
    kind = type(checkpoint.objects[stored]).__name__
    return Fault("unexpected", key, stored, note=f"an entry of type {kind}, not a tensor")


def dtype_name(slot: Slot) -> str:
    """Return the name of a slot's dtype: "float16" for torch.float16."""
    return str(slot.dtype).removeprefix("torch.")
