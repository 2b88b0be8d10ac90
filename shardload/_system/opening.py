"""Opening: what the other ranks learn of a checkpoint that this rank opens. Imported only where there are ranks.

A rank that can't open its checkpoint never comes to the load that the others begin. It leaves a notice in the store by
which the ranks met, and the others end with its error.
"""

from __future__ import annotations

import json
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from torch import distributed
from torch.distributed import distributed_c10d

from shardload._system import presence
from shardload.errors import ShardloadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.distributed.distributed_c10d import Store


class _Own:
    """What this process said: `open` is a notice that stands; `failed`: it could not open one since its last load.

    `loads` is the number of loads that go on: these tell the other ranks themselves. `agreements` is how many began.
    """

    open = False
    failed = False
    loads = 0
    agreements = 0


def agreements() -> int:
    """Return how many agreements this process has begun."""
    return _Own.agreements


def common_store() -> Store:
    """Return the store of all ranks, for what does not belong to one load."""
    return distributed_c10d.PrefixStore("shardload", distributed_c10d._get_default_store())


@contextmanager
def noticed() -> Iterator[None]:
    """Let the other ranks see that this one is there, and the error that ends the block; it gets this rank's number."""
    if _Own.loads or distributed.get_world_size() < 2:
        yield
        return
    try:
        yield
    except ShardloadError as error:
        leave_notice(error)
        raise
    withdraw()
    with suppress(RuntimeError):
        presence.announce(common_store(), distributed.get_rank())


def leave_notice(error: BaseException) -> None:
    """Let the other ranks see the error that keeps this one from coming to them; it gets this rank's number."""
    rank, store = distributed.get_rank(), common_store()
    if isinstance(error, ShardloadError):
        error.what = f"rank {rank}: {error.what}"
        error.rank = rank
    _Own.open = _Own.failed = True
    with suppress(RuntimeError):
        store.set(f"unopened/{rank}", said_of(error, rank))
        store.add("unopened", 1)


def said_of(error: BaseException, rank: int) -> str:
    """Return an error of a rank as JSON, as the others are told of it."""
    known = isinstance(error, ShardloadError)
    parts = (
        error.to_dict()
        if isinstance(error, ShardloadError)
        else {"kind": type(error).__name__, "what": str(error)}
    )
    return json.dumps({**parts, "known": known, "rank": rank}, default=str)


def withdraw() -> None:
    """Take this rank's notice back: it has opened another checkpoint, or has come to a load."""
    if _Own.open:
        _Own.open = False
        with suppress(RuntimeError):
            common_store().set(f"unopened/{distributed.get_rank()}", "")


@contextmanager
def in_a_load() -> Iterator[None]:
    """Leave it to the block to tell the other ranks of errors; what could not be opened before does not count after."""
    withdraw()
    _Own.agreements += 1
    _Own.loads += 1
    try:
        yield
    finally:
        _Own.loads -= 1
        _Own.failed = False


def notice_among(ranks: Callable[[], list[int]]) -> tuple[int, str] | None:
    """Return the first of some ranks that has left a notice, and the notice, as JSON; None where there is none.

    A rank that could not open a checkpoint either takes it for a try that all ranks make.
    """
    store = common_store()
    if _Own.failed or not store.add("unopened", 0):
        return None
    for rank in ranks():
        key = f"unopened/{rank}"
        if store.check([key]) and (text := bytes(store.get(key)).decode()):
            return rank, text
    return None
