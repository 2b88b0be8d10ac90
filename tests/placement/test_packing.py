"""The packer against every assignment in order that there is, and 500 random models of any size against its own law."""

from __future__ import annotations

import random
from itertools import combinations_with_replacement

import pytest

from shardload.placement.packing import Packing, pack, room_for


def loads(sizes, at, devices: int) -> list[int]:
    held = [0] * devices
    for size, device in zip(sizes, at, strict=True):
        held[device] += size
    return held


def is_valid(sizes, packing: Packing, accelerators, processor) -> bool:
    """Nothing is overfilled: blocks in order, each device within its limit, the main one with what is brought to it."""
    count = len(accelerators)
    held = loads(sizes, packing.at, count + 2)
    brought = [size for size, device in zip(sizes, packing.at, strict=True) if device >= count]
    room = room_for(brought, ahead=packing.ahead) if count else 0
    return (
        list(packing.at) == sorted(packing.at)
        and all(held[d] <= accelerators[d] for d in range(count))
        and (not count or held[0] + room <= accelerators[0])
        and (processor is None or held[count] <= processor)
    )


def cost(sizes, at, count: int) -> tuple[int, int]:
    """Bytes beside the accelerators, and of these the bytes on the disk."""
    held = loads(sizes, at, count + 2)
    return held[count] + held[count + 1], held[count + 1]


def exhaustive(sizes, accelerators, processor):
    """Return the valid assignments, those that fetch one block ahead where there is any such one."""
    for ahead in (True, False):
        every = (
            Packing(at, 0, ahead)
            for at in combinations_with_replacement(range(len(accelerators) + 2), len(sizes))
        )
        valid = [each for each in every if is_valid(sizes, each, accelerators, processor)]
        if valid:
            return valid
    return []


def test_no_assignment_in_order_spills_less_or_is_more_even():
    draw = random.Random(3)
    refused = spilled = whole = 0
    for _ in range(400):
        sizes = [draw.choice([0, 1, 2, 3, 5, 8]) for _ in range(draw.randint(1, 6))]
        accelerators = [draw.randint(0, 14) for _ in range(draw.randint(0, 3))]
        processor = draw.choice([0, 4, 9, None])
        valid = exhaustive(sizes, accelerators, processor)
        for balanced in (False, True):
            made = pack(sizes, accelerators, processor, balanced=balanced)
            if made is None:
                assert not valid, (sizes, accelerators, processor)
                refused += 1
                continue
            count = len(accelerators)
            assert is_valid(sizes, made, accelerators, processor), (sizes, accelerators, processor, made)
            best = min(cost(sizes, each.at, count) for each in valid)
            assert cost(sizes, made.at, count) == best, (sizes, accelerators, processor, made)
            spilled += bool(count and best[0])
            if balanced and count and best[0] == 0:
                fullest = min(
                    max(loads(sizes, each.at, count + 2))
                    for each in valid
                    if not cost(sizes, each.at, count)[0]
                )
                assert max(loads(sizes, made.at, count + 2)) == fullest
                whole += 1
    assert min(refused, spilled, whole) > 20  # each case was met


@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_random_models_never_spill_what_fits_and_never_overfill(seed):
    draw = random.Random(seed)
    fitted = 0
    for _ in range(100):
        block = draw.randint(10**5, 10**9)
        sizes = [draw.randint(0, 4 * block), *[block] * draw.randint(1, 80), draw.randint(0, 4 * block)]
        accelerators = [draw.randint(block, 40 * block) for _ in range(draw.randint(1, 8))]
        processor = draw.choice([None, draw.randint(0, 80 * block)])
        for balanced in (False, True):
            made = pack(sizes, accelerators, processor, balanced=balanced)
            if made is None:
                assert room_for(sizes, ahead=False) > accelerators[0]
                continue
            assert is_valid(sizes, made, accelerators, processor)
            if max(made.at) < len(accelerators):
                fitted += 1
            else:  # the very next block finds no room in order
                first = next(n for n, device in enumerate(made.at) if device >= len(accelerators))
                longer = sizes[first + 1 :]
                limits = list(accelerators)
                limits[0] -= room_for(longer, ahead=made.ahead)
                assert limits[0] < 0 or not fits_in_order(sizes[: first + 1], limits)
    assert fitted > 10


def fits_in_order(sizes, limits) -> bool:
    """Whether blocks lie on devices in order: by the table of what each prefix of devices can hold at most."""
    reach = 0
    for limit in limits:
        held = 0
        while reach < len(sizes) and held + sizes[reach] <= limit:
            held += sizes[reach]
            reach += 1
    return reach == len(sizes)


def test_what_is_brought_wants_room_for_a_block_and_the_next():
    assert room_for([]) == 0
    assert room_for([7]) == 7
    assert room_for([1, 7, 2, 3]) == 9
    assert room_for([1, 7, 2, 3], ahead=False) == 7
    made = pack([4, 4, 4, 4], [12], None)
    assert (made.at, made.room, made.ahead) == ((0, 1, 1, 1), 8, True)


def test_one_block_that_is_larger_than_the_device_fits_nowhere():
    assert pack([4, 9], [8], None) is None
    assert pack([4, 9], [], 4).at == (0, 1)


def test_a_main_device_without_room_for_two_fetches_none_ahead():
    made = pack([5, 5, 5], [8], None)
    assert (made.at, made.room, made.ahead) == ((1, 1, 1), 5, False)
