"""The one statement of a load's memory, from headers, before a weight is read. Without torch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from shardload._system.process_memory import size_of
from shardload.errors import Cures, MemoryLimitError, UsageError, Wording
from shardload.keymap import Derived, Joined, leaves
from shardload.placement.taken import Taken
from shardload.tensor_ref import DTYPE_BITS, Span, TensorRef

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from shardload.loading.plan import Plan
    from shardload.model.shell import Shell
    from shardload.placement.target import Target

# Bytes beside the weights, held by tests/test_memory_budget.py: of a load that only maps, and of one that computes.
ROOM_TO_MAP, ROOM_TO_COMPUTE = 32 * 10**6, 64 * 10**6
A_TENSOR = 2_000  # bytes: a parameter, its view and its places in tables
_AHEAD = 2**25  # bytes of source that may wait for a cast, or for their way to a device


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a load takes beside its shell.

    `anonymous` stays and has to be kept; `staging` is wanted besides while it runs; `spilled` lies in a file that
    the kernel can write out; `mapped` is the size of the weights that stay views of their files; `device` lies on
    another device.
    """

    anonymous: int
    staging: int
    spilled: int
    mapped: int
    device: int = 0

    @property
    def peak(self) -> int:
        """The most anonymous memory at any time."""
        return self.anonymous + self.staging

    def to_dict(self) -> dict[str, int]:
        """Return the figures, in bytes."""
        return {**vars(self), "peak": self.peak}


@dataclass
class Statement:
    """Adds up what becomes of each tensor that a load reads, in the order of the shards.

    With `copy` nothing is mapped. `kept`, `passing` and `before` are for memory that no stored tensor explains: what
    stays, what is held beside the stream, and what is held and given back before it.
    """

    shards: Sequence[str]
    copy: bool = False
    kept: int = 0
    passing: int = 0
    before: int = 0
    tensors: int = 0
    _mapped: int = 0
    _part: int = 0
    _steps: list[_Step] = field(default_factory=list)

    def add(self, tensor: Derived, taken: Taken, *, copied: bool = False) -> None:
        """Count a tensor whose slot takes `taken` beside it; `copied`: it is kept as a copy of what is mapped."""
        self.tensors += 1
        if not any(taken) and not copied and not self.copy and is_mapped(tensor):
            self._mapped += tensor.nbytes
        else:
            self._step([tensor], taken, copied=copied)

    def add_together(self, tensors: Collection[Derived], taken: Taken, *, copied: bool = False) -> None:
        """Count tensors that are held until the last of them has come."""
        self.tensors += len(tensors)
        if not any(taken) and not copied and not self.copy and all(map(is_mapped, tensors)):
            self._mapped += sum(tensor.nbytes for tensor in tensors)
        elif tensors:
            self._step(tensors, taken, copied=copied)

    def add_all(
        self,
        tensors: Mapping[str, Derived],
        taken: Callable[[str, Derived], Taken],
        copied: Collection[str] = (),
    ) -> None:
        """Count tensors by name, each with what its slot takes."""
        for name, tensor in tensors.items():
            self.add(tensor, taken(name, tensor), copied=name in copied)

    def compare(self, tensors: Iterable[Derived]) -> None:
        """Count tensors that are compared in pairs before the load."""
        for pair in pairwise(tensors):
            held = sum(tensor.nbytes for tensor in pair if self.copy or not is_mapped(tensor))
            self.before = max(self.before, held)

    def plan(self) -> MemoryPlan:
        """Return the statement."""
        stays = self.kept + sum(step.stays for step in self._steps)
        most = self._most_held() - sum(step.stays for step in self._steps)
        staging = max(self.before - stays, most, 0)
        works = bool(self._steps or stays)
        room = (ROOM_TO_COMPUTE if works else ROOM_TO_MAP) + A_TENSOR * self.tensors
        return MemoryPlan(
            stays,
            staging + self.passing + self._part + room,
            sum(step.taken.spilled for step in self._steps),
            self._mapped,
            sum(step.taken.device for step in self._steps),
        )

    def _step(self, tensors: Collection[Derived], taken: Taken, *, copied: bool) -> None:
        held = sum(_in_memory(tensor) for tensor in tensors if self.copy or not is_mapped(tensor))
        if not any(taken) and copied and not self.copy:
            held = sum(tensor.nbytes for tensor in tensors)
            apart = (tensor.nbytes for tensor in tensors if not is_mapped(tensor))
            self._part = max(self._part, max(apart, default=0))
        parts = [ref for tensor in tensors if isinstance(tensor, Joined) for ref in leaves(tensor)]
        read = (ref.span.nbytes for ref in parts if self.copy or not is_mapped(ref))
        self._part = max(self._part, max(read, default=0))
        self._steps.append(_Step(tuple(tensors), held, taken))

    def _most_held(self) -> int:
        """Return the most that results and what they are made of take at one moment."""
        if not any(step.passes for step in self._steps):
            return 0
        order = {shard: place for place, shard in enumerate(self.shards)}
        events: list[tuple[tuple[int, int], int, _Step]] = []
        for step in self._steps:
            places = [
                (order.get(ref.shard, len(order)), ref.span.start)
                for tensor in step.tensors
                for ref in leaves(tensor)
            ]
            first, last = (min(places), max(places)) if places else ((len(order), 0),) * 2
            events += [(first, 0, step), (last, 1, step)]
        events.sort(key=lambda event: event[:2])
        return _most_held(events)


@dataclass(frozen=True)
class _Step:
    """Tensors that are held in memory from the first byte of theirs to the last, and what is made of them then."""

    tensors: tuple[Derived, ...]
    held: int
    taken: Taken

    @property
    def as_it_is(self) -> bool:
        """Whether the slot holds what was read."""
        return not any(self.taken)

    @property
    def passes(self) -> int:
        """Bytes that are given back once the results are made."""
        return 0 if self.as_it_is else self.held

    @property
    def stays(self) -> int:
        """Bytes of anonymous memory in the end."""
        return self.held if self.as_it_is else self.taken.anonymous


def _most_held(events: Sequence[tuple[tuple[int, int], int, _Step]]) -> int:
    held = most = 0
    waiting: deque[int] = deque()  # sources of results that may not be complete yet
    pending, shard = 0, -1
    for (place, _), is_last, step in events:
        if place != shard:  # the stream waits at the end of each shard
            held -= pending
            waiting.clear()
            pending, shard = 0, place
        if not is_last:
            held += step.held
        elif not step.as_it_is:
            held += step.taken.anonymous
            waiting.append(step.held)
            pending += step.held
        most = max(most, held)
        while waiting and pending - waiting[0] >= _AHEAD:
            pending -= waiting[0]
            held -= waiting.popleft()
    return most


def is_mapped(tensor: Derived) -> bool:
    """Whether a stored tensor is a view of its mapped file: it is in one piece, and its elements are aligned."""
    return isinstance(tensor, TensorRef) and (
        tensor.span.start == tensor.span.stop
        or tensor.span.start % max(DTYPE_BITS[tensor.dtype] // 8, 1) == 0
    )


def _in_memory(tensor: Derived) -> int:
    """Return the bytes of a tensor that is read instead of mapped: a strided one is read with all that lies between."""
    return max(tensor.span.nbytes, tensor.nbytes) if isinstance(tensor, TensorRef) else tensor.nbytes


def state_memory(
    plan: Plan, shell: Shell, shards: Sequence[str], missing: Collection[str], target: Target, *, copy: bool
) -> MemoryPlan:
    """State the memory of a load that has been planned; `missing` are parameters that the class initialises."""
    statement = Statement(shards, copy)
    statement.kept += target.beside
    statement.add_all(plan.direct, target.result_bytes, plan.copied)
    if plan.handed:
        _state_subtrees(statement, plan, target)
    for claim in plan.claims:
        parts = {role: plan.mapped[name] for role, name in claim.stored.items()}
        statement.add_together(parts.values(), target.claim_bytes(claim, parts))
    if missing or plan.in_place:
        _state_class_values(statement, {*missing, *plan.in_place}, shell, target)
    for group in shell.ties:
        stored = dict(plan.tensors)
        statement.compare(stored[name] for name in group if name in stored)
    return statement.plan()


def _state_subtrees(statement: Statement, plan: Plan, target: Target) -> None:
    """Count what is handed to loaders: held until their subtree is complete, beside what they make themselves."""
    moved = False
    for entries in plan.handed.values():
        tensors = {key: tensor for key, tensor in entries.items() if isinstance(tensor, Derived)}
        copied = not tensors.keys().isdisjoint(plan.copied | plan.turned)
        taken = [target.result_bytes(key, tensor) for key, tensor in tensors.items()]
        total = Taken(*(sum(amounts) for amounts in zip(*taken, strict=True)))
        moved = moved or bool(any(total))
        statement.add_together(tensors.values(), total, copied=copied)
    made = sum(plan.own_results.values())
    if moved:
        statement.passing += made  # their casts are counted with the tensors that were handed over
    else:
        statement.kept += made


def _state_class_values(statement: Statement, names: Collection[str], shell: Shell, target: Target) -> None:
    """Count values that the class makes: all of them at once, then each one cast; and one that is looked at."""
    from shardload.checkpoint.shard import CODES

    slots = [shell.slots[name] for name in names if name in shell.slots]
    for slot in slots:
        ref = TensorRef(slot.name, CODES[slot.dtype], slot.shape, "", Span(0, slot.nbytes))
        taken = target.result_bytes(slot.name, ref)
        statement.kept += taken.anonymous if any(taken) else slot.nbytes
        statement.passing += slot.nbytes if any(taken) else 0
    statement.passing += max((slot.nbytes for slot in slots), default=0)
    statement.tensors += len(slots)


def refuse_above(stated: MemoryPlan, max_memory: int | None) -> None:
    """Raise MemoryLimitError when a load states more than `max_memory` bytes, UsageError for what is no number."""
    if max_memory is None:
        return
    if type(max_memory) is not int or max_memory < 0:
        raise UsageError(
            Wording("{max_memory} is no number of bytes", max_memory=max_memory),
            cure="pass one number: what the load may add to this process's anonymous memory; "
            "offloading by device is not done",
        )
    if stated.peak > max_memory:
        raise MemoryLimitError(
            f"the load takes {size_of(stated.peak)} of anonymous memory at its peak "
            f"({size_of(stated.anonymous)} stay), and max_memory allows {size_of(max_memory)}; nothing was loaded",
            cure=Cures(
                Wording(
                    "keep the stored dtype ({dtype}, without {copy}), which maps the files",
                    dtype="auto",
                    copy=True,
                ),
                Wording("pass {spill}, and casts go to evictable file-backed memory", spill=...),
            ),
        )
