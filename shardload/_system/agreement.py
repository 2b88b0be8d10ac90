"""Agreement: all ranks that load one model end it in the same way. Imported only where a model is sharded over ranks.

Ranks tell one another by the store that torch.distributed met by, not by collectives: a rank that failed takes part in
no collective, and how long a process group waits is not a loader's to change.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.distributed import distributed_c10d

from shardload._system import opening, presence, turns
from shardload.errors import RanksError, ShardloadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


_POLL = 0.002  # seconds between two looks at the store while a rank waits, the first time
_SLOWEST_POLL = 0.1
_SELDOM = 0.3  # seconds between two looks while a rank reads
_LINGERS = 2.0  # seconds that a rank which failed waits for the others to see it
_TRIES_AGAIN = 2.0  # seconds in which a rank that could not open its checkpoint may begin to open another one
_OPEN: dict[tuple[int, ...], Agreement] = {}
"""The agreement of a set of ranks that is going on in this process: a step inside of it is part of it."""


@contextmanager
def together(ranks: Sequence[int], timeout: float) -> Iterator[Agreement]:
    """Let ranks end a block alike: an error of one is raised on all, with its number."""
    over = tuple(ranks)
    outer = _OPEN.get(over)
    if outer is not None:
        yield outer
        return
    own = _OPEN[over] = Agreement(over, timeout)
    try:
        with opening.in_a_load(), own.told():
            own.require_in_time()
            yield own
        own.leave()
    except RanksError as error:
        if own.is_late:
            opening.leave_notice(error)  # for the agreement that the others may have begun since
        raise
    finally:
        del _OPEN[over]
        own.watch.close()


class Agreement:
    """What the ranks of one operation tell one another: that they have come to a place, or why they ended.

    `timeout` is how many seconds a rank waits for the others at a place. Raises RanksError when it has passed, and the
    error of another rank, with its number, as soon as it is known.
    """

    def __init__(self, ranks: Sequence[int], timeout: float) -> None:
        self.ranks = tuple(ranks)
        self.rank = distributed.get_rank()
        self.timeout = timeout
        self._looked = time.monotonic()
        self._failed = False
        self._lost = 0  # ranks that won't come any more
        self._steps = 0
        self._asks = 0.0
        self._noticed: tuple[tuple[int, str], float] | None = None
        with self._reached():
            self._store, self.is_late = turns.next_turn(self.ranks)
        following = self.ranks[(self.ranks.index(self.rank) + 1) % len(self.ranks)]
        common = opening.common_store()
        self.watch = presence.Watch(common, following)
        with self._reached():
            presence.announce(common, self.rank)

    def require_in_time(self) -> None:
        """Raise RanksError where the other ranks have ended the agreement, to which this rank did not come."""
        if self.is_late:
            self._failed = True
            raise RanksError(
                "the other ranks have ended a load or save without this rank, which did not come in time",
                cure="let all ranks call the same functions, in the same order; pass a longer timeout where this rank "
                "is only slower",
            )

    @property
    def is_first(self) -> bool:
        """Whether this is the first of the ranks."""
        return self.rank == self.ranks[0]

    def meet(self, place: str) -> None:
        """Wait until all ranks have come to a place. Raises the error of a rank that failed.

        Raises RanksError where another rank has come to another place: it does something else, and won't come here.
        """
        self._steps += 1
        first, at = json.loads(self.first_to_say("place", json.dumps([self.rank, place])))
        if at != place:
            other = RanksError(
                "this rank and others do different things",
                where=f"rank {first} is at {at!r}, rank {self.rank} at {place!r}",
                cure="let all ranks call the same functions, in the same order, with the same model and keywords",
            )
            raise self._ended_by(json.dumps({**other.to_dict(), "known": True, "rank": first}))
        place = f"{self._steps} {place}"
        count = self._add(f"{place}/count", 1)
        self._set(f"{place}/{self.rank}", "")
        ends = time.monotonic() + self.timeout
        pause = _POLL
        while count < len(self.ranks):
            self.look(place)
            self._look_for_notices(place)
            if time.monotonic() > ends:
                raise self._alone(place)
            time.sleep(pause)
            pause = min(pause * 1.5, _SLOWEST_POLL)
            count = self._add(f"{place}/count", 0)
        self.look()

    def leave(self) -> None:
        """End the agreement; the first rank waits for the others."""
        self._failed = True
        self._gone("left", wait=self.is_first)

    def _gone(self, key: str, *, wait: bool) -> None:
        """Count this rank as one that has seen the end, and wait a moment for the others.

        A process may end now, and the first rank's often holds the store.
        """
        ends = time.monotonic() + _LINGERS
        with suppress(RanksError):
            count = self._add(key, 1)
            while wait and count < len(self.ranks) - self._lost and time.monotonic() < ends:
                time.sleep(_POLL)
                count = self._add(key, 0)

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Let all ranks pass a block, or none: where it fails on a rank, all ranks raise that error.

        An error that is the same on all ranks is raised as it is, and another one with the number of its rank.
        """
        error: ShardloadError | None = None
        try:
            yield
        except ShardloadError as raised:
            error = raised
        step = f"judgement/{self._steps}"
        self._set(f"{step}/{self.rank}", "" if error is None else self._said(error))
        self._add(f"{step}/faulty", int(error is not None))
        self.meet("judged")
        failed = self._add(f"{step}/faulty", 0)
        if not failed:
            return
        self._failed = True
        verdicts = [json.loads(self._get(f"{step}/{rank}") or "null") for rank in self.ranks]
        self._gone(f"{step}/known", wait=self.is_first)
        told = {(each["kind"], each["what"]) for each in verdicts if each}
        if error is not None and failed == len(self.ranks) and len(told) == 1:
            raise error
        first = next(each for each in verdicts if each)
        if error is not None and first["rank"] == self.rank:
            raise self._named(error)
        raise self._error_of(first) from error

    def share(self, name: str, value: str | None) -> str:
        """Return the value that the first rank gives; the others pass None or their own, and wait for it."""
        key = f"value/{self._steps}"
        if self.is_first:
            self._set(key, value or "")
        self.meet(name)
        return self._get(key)

    def gathered(self, name: str, value: str) -> list[str]:
        """Return the values that all ranks give, in the order of the ranks."""
        key = f"values/{self._steps}"
        self._set(f"{key}/{self.rank}", value)
        self.meet(name)
        return [self._get(f"{key}/{rank}") for rank in self.ranks]

    def first_to_say(self, key: str, value: str) -> str:
        """Return the value of the rank that says one first; nobody waits."""
        with self._reached():
            return bytes(self._store.compare_set(f"first/{self._steps}/{key}", "", value)).decode()

    def group(self, name: str, ranks: Sequence[int]) -> Any:
        """Return a process group of some of the ranks, over gloo, that torch knows nothing of; all of them call this.

        When the last reference to it is gone its connections are closed, and what others wait for in it fails.
        """
        store = distributed_c10d.PrefixStore(name, self._store)
        wait = timedelta(seconds=self.timeout)
        try:
            return distributed_c10d.ProcessGroupGloo(store, ranks.index(self.rank), len(ranks), wait)
        except RuntimeError as error:
            raise self.lost(error) from error

    def lost(self, error: RuntimeError) -> RanksError:
        """Return the error for a broken connection; raise that of the rank that ended it, once it is known."""
        ends = time.monotonic() + _LINGERS
        while time.monotonic() < ends:
            self.look()
            time.sleep(_POLL)
        return RanksError(
            f"rank {self.rank} lost another rank: {str(error).splitlines()[0]}",
            cure="look at what the other ranks say",
        )

    def require_same(
        self, what: str, value: str, cure: str = "let all ranks read the same checkpoint into the same model"
    ) -> None:
        """Raise RanksError unless all ranks have the value of the first one; only its digest is told."""
        own = hashlib.sha256(value.encode()).hexdigest()
        if self.share(what, own) != own:
            raise RanksError(
                f"{what} differ from those of rank {self.ranks[0]}",
                cure=cure,
            )

    @contextmanager
    def same_random(self) -> Iterator[None]:
        """Give all ranks the random state of the first one in a block; afterwards each has its own again."""
        own = base64.b64encode(bytes(torch.get_rng_state().tolist())).decode()
        state = base64.b64decode(self.share("random state", own))
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
            yield

    def look(self, place: str = "", *, seldom: bool = False) -> None:
        """Raise the error of another rank, if one has failed or its process has ended before it came to `place`.

        `seldom`: not if that was asked a moment ago.
        """
        now = time.monotonic()
        if self._failed or (seldom and now - self._looked < _SELDOM):
            return
        self._looked = now
        if self._add("failed", 0):
            self._gone("known", wait=False)
            raise self._error_of(json.loads(self._get("error")))
        with self._reached():
            ended = self.watch.has_ended()
        if ended and not (place and self._has(f"{place}/{self.watch.rank}")):
            raise self._without(self._last_words(self.watch.rank))

    def _last_words(self, rank: int) -> str:
        """Return the error of a rank whose process has ended: that of its checkpoint, where it could not open it."""
        with self._reached():
            notice = opening.notice_among(lambda: [rank])
        if notice is not None:
            return notice[1]
        cure = "look at what that rank says, and at what ended it: the system does, where memory runs out"
        said = RanksError("its process has ended", cure=cure).to_dict()
        return json.dumps({**said, "known": True, "rank": rank})

    def _look_for_notices(self, place: str) -> None:
        """Raise the error of a rank that could not open its checkpoint, and does not try again."""
        now = time.monotonic()
        if self._steps > 1 or now < self._asks:
            return  # all have come to the first place
        self._asks = now + _SELDOM
        with self._reached():
            found = opening.notice_among(lambda: self._late(place))
        if found is None or self._noticed is None or self._noticed[0] != found:
            self._noticed = None if found is None else (found, now)
        elif now - self._noticed[1] > _TRIES_AGAIN:
            self._set(turns.ended_without(found[0]), "")
            raise self._without(found[1])

    def _without(self, said: str) -> ShardloadError:
        """Tell all what ended another rank, and return its error."""
        self._lost = 1
        return self._ended_by(said)

    def _ended_by(self, said: str) -> ShardloadError:
        self._tell(said)
        return self._error_of(json.loads(self._get("error")))

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell the other ranks of an error that ends the block, and raise it with the number of this rank."""
        try:
            yield
        except BaseException as error:
            if self._failed or getattr(error, "rank", None) is not None:
                raise
            self._tell(self._said(error))
            if not isinstance(error, ShardloadError):
                raise
            self._named(error)
            raise

    def _said(self, error: BaseException) -> str:
        return opening.said_of(error, self.rank)

    def _named(self, error: ShardloadError) -> ShardloadError:
        error.what = f"rank {self.rank}: {error.what}"
        error.rank = self.rank
        return error

    def _tell(self, said: str) -> None:
        self._failed = True
        if self._add("first", 1) == 1:
            self._set("error", said)
            self._add("failed", 1)
        self._gone("known", wait=True)

    def _error_of(self, said: dict[str, Any]) -> ShardloadError:
        self._failed = True
        rank, what = said["rank"], said["what"].removeprefix(f"rank {said['rank']}: ")
        kind = _kinds(ShardloadError).get(said["kind"], RanksError) if said["known"] else RanksError
        if not said["known"]:
            what = f"it ended by {said['kind']}: {what}"
        error: ShardloadError = kind(
            f"rank {rank}: {what}", where=said.get("where"), cure=said.get("cure"), code=said.get("code")
        )
        error.rank = rank
        return error

    def _alone(self, place: str) -> RanksError:
        late = self._late(place)
        for rank in late:
            self._set(turns.given_up(rank), "")
        place = place.split(" ", 1)[1]
        shown = ", ".join(map(str, late[:16])) + (f" and {len(late) - 16} more" if len(late) > 16 else "")
        return RanksError(
            f"rank{'s' if len(late) > 1 else ''} {shown} did not come within {self.timeout:g} seconds",
            where=f"rank {self.rank} waits at {place!r}",
            cure="look at what these ranks say; pass a longer timeout where they are only slower",
        )

    def _late(self, place: str) -> list[int]:
        return [rank for rank in self.ranks if not self._has(f"{place}/{rank}")]

    def _has(self, key: str) -> bool:
        with self._reached():
            return bool(self._store.check([key]))

    def _add(self, key: str, amount: int) -> int:
        with self._reached():
            return int(self._store.add(key, amount))

    def _set(self, key: str, value: str) -> None:
        with self._reached():
            self._store.set(key, value)

    def _get(self, key: str) -> str:
        with self._reached():
            return bytes(self._store.get(key)).decode()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self._failed = True
            raise RanksError(
                f"rank {self.rank} can't reach the store by which the ranks met: {str(error).splitlines()[0]}",
                cure="the rank that holds it has ended: look at what that rank says",
            ) from error


def _kinds(base: type[ShardloadError]) -> dict[str, type[ShardloadError]]:
    """Return a class of errors and all classes below it, by name."""
    found = {base.__name__: base}
    for kind in base.__subclasses__():
        found |= _kinds(kind)
    return found
