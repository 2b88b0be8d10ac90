"""Packs the blocks of a model onto devices: which block lies where, by sizes alone. Does not import torch.

Blocks stay in the order in which they run, and devices are filled in their order, so that a value crosses from one
device to the next as seldom as possible. Accelerators come first; what they can't hold lies in the processor's memory
and then on the disk, and is brought to the first accelerator, the main one, whenever it runs. So the main one has to
keep room for a block that runs and the next one, which is fetched meanwhile.

Filling in order wastes nothing: whatever lies in order on these devices at all, lies on them so. A device that takes
fewer blocks than it could leaves more of them to the devices behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Packing:
    """Where blocks lie. `at` has a number per block: that of an accelerator, then one for the processor, and the disk.

    >>> from shardload.placement.packing import pack
    >>> pack([4, 4, 4], [8], 4).at
    (0, 1, 2)
    >>> pack([4, 4, 4], [8, 4]).at
    (0, 0, 1)

    `room` is what the main device keeps free for blocks that are brought to it; `ahead` tells whether it is enough for
    two of them, so that the next one may be fetched while one runs.
    """

    at: tuple[int, ...]
    room: int = 0
    ahead: bool = True


def pack(
    sizes: Sequence[int], accelerators: Sequence[int], processor: int | None = 0, *, balanced: bool = False
) -> Packing | None:
    """Return where blocks of these sizes lie; None where the main accelerator has no room even to run one of them.

    `accelerators` and `processor` are the bytes that each may hold; None is no limit, and the disk has none. Nothing
    lies beside the accelerators that they could hold in order. With `balanced` what all fits is spread, so that the
    fullest one holds as little as can be.
    """
    count = len(accelerators)
    if not accelerators:
        return Packing(_beside(sizes, processor, 0), 0)
    whole = _in_order(sizes, accelerators)
    if len(whole) == len(sizes):
        return Packing(tuple(_spread(sizes, accelerators) if balanced else whole))
    for ahead in (True, False):
        # The fewer blocks are brought, the less room they want; the longest head that fits is taken.
        for head in range(len(sizes) - 1, -1, -1):
            room = room_for(sizes[head:], ahead=ahead)
            if room > accelerators[0]:
                continue
            held = _in_order(sizes[:head], [accelerators[0] - room, *accelerators[1:]])
            if len(held) == head:
                return Packing((*held, *_beside(sizes[head:], processor, count)), room, ahead)
    return None


def room_for(brought: Sequence[int], *, ahead: bool = True) -> int:
    """Return the bytes that blocks take on the device that they are brought to, one by one or one ahead."""
    pairs = [first + second for first, second in pairwise(brought)] if ahead else []
    return max([*brought, *pairs], default=0)


def _in_order(sizes: Sequence[int], limits: Sequence[int]) -> list[int]:
    """Fill devices in order; return the device of each block, as far as they can hold them."""
    at: list[int] = []
    device = held = 0
    for size in sizes:
        while device < len(limits) and held + size > limits[device]:
            device, held = device + 1, 0
        if device == len(limits):
            break
        at.append(device)
        held += size
    return at


def _spread(sizes: Sequence[int], limits: Sequence[int]) -> list[int]:
    """Return the device of each block so that the fullest device holds as little as can be."""
    low, high = max(sizes, default=0), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        if len(_in_order(sizes, [min(limit, middle) for limit in limits])) == len(sizes):
            high = middle
        else:
            low = middle + 1
    return _in_order(sizes, [min(limit, low) for limit in limits])


def _beside(sizes: Sequence[int], processor: int | None, first: int) -> tuple[int, ...]:
    """Return numbers for blocks that no accelerator holds: the processor's memory until it is full, then the disk."""
    sums = accumulate(sizes)
    return tuple(first if processor is None or held <= processor else first + 1 for held in sums)
