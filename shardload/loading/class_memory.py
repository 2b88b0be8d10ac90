"""Memory for what a class computes: values of missing parameters, weights derived from weights. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from shardload.tensor_ref import Span, TensorRef

if TYPE_CHECKING:
    from collections.abc import Collection

    from shardload.model.shell import Shell, Slot
    from shardload.placement.taken import Taken
    from shardload.placement.target import Target

_ORTHOGONAL = 4  # times a matrix: `orthogonal_` holds it, its factors and their work space


class Computed(NamedTuple):
    """Bytes that stay, that are held during the stream, and that are freed before it; how many tensors there are."""

    kept: int
    passing: int
    before: int
    tensors: int


def class_values(names: Collection[str], shell: Shell, target: Target) -> Computed:
    """Return the memory of values that the class makes before the stream begins, and that are cast after it.

    While the constructor runs, its buffers and plain tensors are there a second time, an initialiser works on one
    value, and afterwards one value is checked for NaN.
    """
    kept = passing = 0
    slots = [shell.slots[name] for name in names if name in shell.slots]
    for slot in slots:
        taken = _taken(slot, target)
        kept += taken.anonymous if any(taken) else slot.nbytes
        passing += slot.nbytes if any(taken) else 0
    again = sum(slot.nbytes for slot in shell.slots.values() if slot.kind != "parameter")
    work = max((slot.nbytes for slot in slots), default=0) * (_ORTHOGONAL if shell.is_orthogonal else 1)
    return Computed(kept, passing, sum(slot.nbytes for slot in slots) + again + work, len(slots))


def derived(shell: Shell, target: Target) -> Computed:
    """Return the memory of what torch's old weight_norm, spectral_norm and pruning compute, and keep in attributes."""
    from shardload.model.aliases import recomputes
    from shardload.model.shell import modules_of

    kept = tensors = 0
    for path, module in modules_of(shell.model):
        if not (module._forward_pre_hooks and any(map(recomputes, module._forward_pre_hooks.values()))):
            continue
        for name in vars(module):
            slot = shell.slots.get(path + name)
            if slot is not None and slot.kind == "attribute":
                taken = _taken(slot, target)  # the dtype and device that it is computed in are the weights'
                kept += taken.anonymous + taken.spilled if any(taken) else slot.nbytes
                tensors += 1
    return Computed(kept, 0, 0, tensors)


def _taken(slot: Slot, target: Target) -> Taken:
    from shardload.checkpoint.shard import CODES

    ref = TensorRef(slot.name, CODES[slot.dtype], slot.shape, "", Span(0, slot.nbytes))
    return target.result_bytes(slot.name, ref)
