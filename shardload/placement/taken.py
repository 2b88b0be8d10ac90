"""Taken: the memory that a slot's tensor takes beside its file, computed from the header. Does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from shardload.tensor_ref import DTYPE_BITS, TensorRef

if TYPE_CHECKING:
    from shardload.keymap import Derived

SMALL = 2**15
"""A cast of at most so many elements stays in memory, even when larger ones are spilled."""


class Taken(NamedTuple):
    """Bytes of anonymous memory, of the spill file, and of another device. All are 0 for a view of the file.

    `passing` is anonymous memory that is needed in addition until the tensor is complete, for one tensor at a time.
    """

    anonymous: int = 0
    spilled: int = 0
    device: int = 0
    passing: int = 0

    def plus(self, other: Taken, count: int = 1) -> Taken:
        """Return the sum with that of `count` other tensors."""
        return Taken(
            self.anonymous + other.anonymous * count,
            self.spilled + other.spilled * count,
            self.device + other.device * count,
            max(self.passing, other.passing),
        )


NOTHING = Taken()
"""The memory of a slot that holds the stored tensor itself."""


def code_after_cast(tensor: Derived, code: str | None) -> str:
    """Return the dtype code of a tensor after a load that casts floating tensors to `code`; None casts nothing."""
    return code if code is not None and tensor.is_floating else tensor.dtype


def taken_on_device(tensor: Derived, code: str | None, *, device: str = "cpu", spills: bool = False) -> Taken:
    """Return the memory that a tensor takes when it is cast to `code` and moved to a device of type `device`."""
    return taken_as(tensor, code_after_cast(tensor, code), device=device, spills=spills)


def taken_as(tensor: Derived, wanted: str, *, device: str = "cpu", spills: bool = False) -> Taken:
    """Return the memory that a tensor takes as one of the dtype code `wanted` on a device of type `device`."""
    nbytes = (tensor.numel * DTYPE_BITS[wanted] + 7) // 8
    if device != "cpu":
        return Taken(device=nbytes)
    if wanted == tensor.dtype:
        return NOTHING
    packed = not isinstance(tensor, TensorRef) or tensor.strides is None
    return Taken(spilled=nbytes) if spills and packed and tensor.numel > SMALL else Taken(anonymous=nbytes)


def padded(taken: Taken, longest: Taken, nbytes: int) -> Taken:
    """Return the memory of a part that FSDP copies into as much as the longest part takes, when all parts are there.

    `longest` is what such a part takes beside the file, `nbytes` how many bytes it has there.
    """
    if longest.device:
        return longest._replace(passing=0)
    held = longest.anonymous + longest.spilled or nbytes
    return Taken(anonymous=held, spilled=taken.spilled, passing=held)
