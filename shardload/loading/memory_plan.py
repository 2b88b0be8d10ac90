"""States how much memory a load takes, from headers, before a weight is read. Does not import torch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from typing import TYPE_CHECKING

from shardload._system.process_memory import size_of
from shardload.errors import Cures, MemoryLimitError, UsageError, Wording
from shardload.keymap import Derived
from shardload.keymap.decoding import WORK_SPACE
from shardload.keymap.dequantised import Dequantised
from shardload.keymap.derived import pieces, reading_places
from shardload.placement.taken import NOTHING, Taken
from shardload.tensor_ref import TensorRef, is_mapped

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from shardload.loading.class_memory import Computed
    from shardload.loading.plan import Plan
    from shardload.model.shell import Shell
    from shardload.placement.target import Target

# Bytes beside the weights for a load that only maps, and for one that computes: see tests/test_memory_budget.py.
ROOM_TO_MAP, ROOM_TO_COMPUTE = 32 * 10**6, 40 * 10**6
A_TENSOR = 2_000  # bytes: a parameter, its view and its places in tables
_HEAP = 2**25  # bytes: a larger block is given back to the system when it is freed
_AHEAD = 2**25  # bytes of source that may wait for a cast or a copy to a device


@dataclass(frozen=True)
class MemoryPlan:
    """The memory in bytes that a load takes beside its shell.

    `anonymous` stays after the load; `staging` is needed in addition while it runs; `spilled` lies in a file, so the
    kernel can write it out; `mapped` is the size of the weights that stay views of their files; `device` lies on
    another device.
    """

    anonymous: int
    staging: int
    spilled: int
    mapped: int
    device: int = 0

    @property
    def peak(self) -> int:
        """The highest anonymous memory at any time of the load."""
        return self.anonymous + self.staging

    def to_dict(self) -> dict[str, int]:
        """Return all figures, in bytes."""
        return {**vars(self), "peak": self.peak}


@dataclass
class Statement:
    """Adds up the memory of each tensor that a load reads, in the order of the shards.

    With `copy` nothing is mapped; `ahead` is what may be read before it is wanted. `kept`, `passing` and `before` count
    memory beside the stored tensors: memory that stays, memory that is held during the stream, and memory that is freed
    before the stream begins.
    """

    shards: Sequence[str]
    copy: bool = False
    kept: int = 0
    passing: int = 0
    before: int = 0
    tensors: int = 0
    ahead: int = 0
    _mapped: int = 0
    _part: int = 0
    _padding: int = 0
    _steps: list[_Step] = field(default_factory=list)

    def add(self, tensor: Derived, taken: Taken, *, copied: bool = False) -> None:
        """Count a tensor whose slot takes `taken` beside it; `copied`: the slot gets a copy of the mapped tensor."""
        self.tensors += 1
        if not (copied or self.copy or any(taken)) and is_mapped(tensor):
            self._mapped += tensor.nbytes
        else:
            self._step([tensor], taken, copied=copied)

    def add_together(self, tensors: Collection[Derived], taken: Taken, *, copied: bool = False) -> None:
        """Count tensors that are all held until the last one has been read."""
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
        """Count tensors by name, each with the memory that its slot takes."""
        for name, tensor in tensors.items():
            self.add(tensor, taken(name, tensor), copied=name in copied)

    def compare(self, tensors: Iterable[Derived]) -> None:
        """Count tensors that are compared in pairs before the stream begins."""
        for pair in pairwise(tensors):
            held = sum(tensor.nbytes for tensor in pair if self.copy or not is_mapped(tensor))
            self.before = max(self.before, held)

    def include(self, computed: Computed) -> None:
        """Count what a class computes."""
        self.kept += computed.kept
        self.passing += computed.passing
        self.before = max(self.before, computed.before)
        self.tensors += computed.tensors

    def plan(self) -> MemoryPlan:
        """Return the sums as a MemoryPlan."""
        stays = self.kept + sum(step.stays for step in self._steps)
        most = self._most_held() - sum(step.stays for step in self._steps)
        staging = max(self.before - stays, most, 0)
        works = bool(self._steps or stays)
        room = (ROOM_TO_COMPUTE if works else ROOM_TO_MAP) + A_TENSOR * self.tensors
        if self._part or any(step.passes for step in self._steps):
            staging += self.ahead  # elsewhere it is a part of the result
        return MemoryPlan(
            stays,
            staging + self.passing + self._part + self._padding + room,
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
        parts = [piece for tensor in tensors if not isinstance(tensor, TensorRef) for piece in pieces(tensor)]
        self._part = max(self._part, max(map(self._read_for, parts), default=0))
        self._padding = max(self._padding, taken.passing)
        self._steps.append(_Step(tuple(tensors), held, taken))

    def _read_for(self, piece: TensorRef | Dequantised) -> int:
        """Return the bytes that a piece of a tensor takes until it is copied, or decoded, into its place."""
        refs = [piece] if isinstance(piece, TensorRef) else list(piece.stored.values())
        read = sum(ref.span.nbytes for ref in refs if self.copy or not is_mapped(ref))
        return read + (WORK_SPACE if isinstance(piece, Dequantised) else 0)

    def _most_held(self) -> int:
        """Return the most bytes that results and their sources take at one time."""
        if not any(step.passes for step in self._steps):
            return 0
        order = {shard: place for place, shard in enumerate(self.shards)}
        events: list[tuple[tuple[int, int], int, _Step]] = []
        for step in self._steps:
            places = [
                (order.get(ref.shard, len(order)), place)
                for tensor in step.tensors
                for ref, place in reading_places(tensor)
            ]
            first, last = (min(places), max(places)) if places else ((len(order), 0),) * 2
            events += [(first, 0, step), (last, 1, step)]
        events.sort(key=lambda event: event[:2])
        return _most_held(events)


@dataclass(frozen=True)
class _Step:
    """Tensors that are held from the first read byte to the last, and the memory of the result made from them."""

    tensors: tuple[Derived, ...]
    held: int
    taken: Taken

    @property
    def as_it_is(self) -> bool:
        """Whether the slot holds the tensor that was read."""
        return not any(self.taken)

    @property
    def passes(self) -> int:
        """Bytes that are freed once the results are made."""
        return 0 if self.as_it_is else self.held

    @property
    def stays(self) -> int:
        """Bytes of anonymous memory that stay after the load."""
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


def _in_memory(tensor: Derived) -> int:
    """Return the bytes of a tensor that is read, not mapped: a strided one is read with the bytes in between."""
    return max(tensor.span.nbytes, tensor.nbytes) if isinstance(tensor, TensorRef) else tensor.nbytes


def state_memory(
    plan: Plan,
    shell: Shell,
    shards: Sequence[str],
    missing: Collection[str],
    target: Target,
    *,
    copy: bool,
    ahead: int = 0,
) -> MemoryPlan:
    """Return the memory that a planned load takes; `missing` are parameters that the class initialises."""
    statement = Statement(shards, copy, ahead=ahead)
    statement.kept += target.beside
    statement.passing += target.work_space
    stored = dict(plan.tensors) if shell.ties else {}
    again = set() if copy else {name for group in shell.ties for name in _of_one_place(group, stored)}
    once = (
        {name: tensor for name, tensor in plan.direct.items() if name not in again} if again else plan.direct
    )
    statement.add_all(once, target.result_bytes, plan.copied)
    if plan.handed:
        _state_subtrees(statement, plan, target)
    for claim in plan.claims:
        parts = {role: plan.mapped[name] for role, name in claim.stored.items()}
        statement.add_together(parts.values(), target.claim_bytes(claim, parts))
    if missing or plan.in_place:
        from shardload.loading.class_memory import class_values

        statement.include(class_values({*missing, *plan.in_place}, shell, target))
    if shell.keeps_references and any(slot.kind == "attribute" for slot in shell.slots.values()):
        from shardload.loading.class_memory import derived

        statement.include(derived(shell, target))
    for group in shell.ties:
        statement.compare(stored[name] for name in group if name in stored)
    return statement.plan()


def _of_one_place(group: Sequence[str], stored: Mapping[str, Derived]) -> list[str]:
    """Return the names of a tie whose mapped bytes are those of another name, as in a pickle that kept the tie."""
    places = {
        name: (ref.shard, ref.span, ref.strides)
        for name in group
        if isinstance(ref := stored.get(name), TensorRef) and is_mapped(ref)
    }
    first = {place: name for name, place in reversed(places.items())}
    return [name for name, place in places.items() if first[place] != name]


def _state_subtrees(statement: Statement, plan: Plan, target: Target) -> None:
    """Count the tensors that loaders get, which are held until a subtree is complete, and the loaders' results."""
    moved = False
    for entries in plan.handed.values():
        tensors = {key: tensor for key, tensor in entries.items() if isinstance(tensor, Derived)}
        copied = not tensors.keys().isdisjoint(plan.copied | plan.turned)
        taken = [target.result_bytes(key, tensor) for key, tensor in tensors.items()]
        total = reduce(Taken.plus, taken, NOTHING)
        moved = moved or bool(any(total))
        statement.add_together(tensors.values(), total, copied=copied)
    made = sum(plan.own_results.values())
    # A loader may hold another tensor while it computes each result. A freed one of up to 32 MB stays on the heap: an
    # aligned block of the same size does not fit into its place.
    sizes = plan.own_results.values()
    statement.passing += max(sum(size for size in sizes if size <= _HEAP), 2 * max(sizes, default=0))
    if moved:
        # The casts of these results are counted with the tensors that were handed over.
        statement.passing += made
    else:
        statement.kept += made


def refuse_above(stated: MemoryPlan, max_memory: int | None, cures: Callable[[int], str]) -> None:
    """Raise MemoryLimitError when a load states more than `max_memory` bytes, UsageError unless that is a number.

    `cures` says what brings the load below a limit.
    """
    if max_memory is None:
        return
    if type(max_memory) is not int or max_memory < 0:
        raise UsageError(
            Wording("{max_memory} is no number of bytes", max_memory=max_memory),
            cure=Cures(
                "pass one number: the bytes that the load may add to this process's anonymous memory",
                Wording("limits per device go with a map of devices: {device_map}", device_map="auto"),
            ),
        )
    if stated.peak > max_memory:
        raise MemoryLimitError(
            f"the load takes {size_of(stated.peak)} of anonymous memory at its peak "
            f"({size_of(stated.anonymous)} stay), and max_memory allows {size_of(max_memory)}; nothing was loaded",
            cure=cures(max_memory),
        )
