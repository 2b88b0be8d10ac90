"""Turns: which agreement a set of ranks begins next; one that ended without a rank leaves it behind for no longer."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING
from uuid import uuid4

from torch import distributed
from torch.distributed import distributed_c10d

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_POLL = 0.1  # seconds
_BEGINS = 2.0  # seconds in which ranks that gave one up may begin another agreement
_PROCESS = uuid4().hex

TURNS: dict[tuple[int, ...], int] = {}
"""How many agreements this process has begun with each set of ranks: all of a set begin them in the same order.

They are those of one store: where ranks meet by another one, in another process group, all begin anew.
"""


def next_turn(ranks: tuple[int, ...]) -> tuple[Store, bool]:
    """Return the store of the next agreement of some ranks, and whether the others have given this rank up in it.

    One that ended without this rank is passed over where this rank left a notice, and where the others, who did not
    wait any longer, have begun another one since, or do so in a moment.
    """
    own, common = distributed.get_rank(), distributed_c10d._get_default_store()
    known = f"shardload/process/{_PROCESS}-{os.getpid()}"
    if not common.check([known]):
        TURNS.clear()
        common.set(known, "")
    while True:
        turn = TURNS[ranks] = TURNS.get(ranks, -1) + 1
        store = _store_of(ranks, turn)
        if store.check([ended_without(own)]):
            continue
        is_late = store.check([given_up(own)])
        if is_late and _begins(_store_of(ranks, turn + 1)):
            continue
        store.set("begun", "")
        return store, is_late


def ended_without(rank: int) -> str:
    """Return the key of an agreement that ended by the notice of a rank, which knows of it."""
    return f"without/{rank}"


def given_up(rank: int) -> str:
    """Return the key of an agreement that ended when a rank had not come in time."""
    return f"late/{rank}"


def _begins(store: Store) -> bool:
    ends = time.monotonic() + _BEGINS
    while not store.check(["begun"]):
        if time.monotonic() > ends:
            return False
        time.sleep(_POLL)
    return True


def _store_of(ranks: tuple[int, ...], turn: int) -> Store:
    name = f"shardload/{'-'.join(map(str, ranks))}/{turn}"
    return distributed_c10d.PrefixStore(name, distributed_c10d._get_default_store())
