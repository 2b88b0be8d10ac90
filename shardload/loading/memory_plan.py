"""The memory that a load will take, stated from headers before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardload._system.process_memory import size_of
from shardload.checkpoint.shard import DTYPES
from shardload.errors import MemoryLimitError, UsageError
from shardload.placement.target import AccountedTarget
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardload.keymap import Derived
    from shardload.loading.plan import Plan
    from shardload.model.shell import Shell
    from shardload.placement.target import Target

_MAPPING, _CASTING = (
    32 * 10**6,
    64 * 10**6,
)  # bytes beside the results; tests/test_memory_budget.py holds them
_A_TENSOR = 2_000  # bytes: a parameter, its view and its places in tables


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a load will take beside its shell.

    `anonymous` stays and has to be kept; `staging` is wanted besides while it runs; `spilled` lies in a file that
    the kernel can write out; `mapped` is the size of the weights that stay views of their files.
    """

    anonymous: int
    staging: int
    spilled: int
    mapped: int

    @property
    def peak(self) -> int:
        """The most anonymous memory at any time."""
        return self.anonymous + self.staging

    def to_dict(self) -> dict[str, int]:
        """Return the figures, in bytes."""
        return {**vars(self), "peak": self.peak}


def memory_plan(
    plan: Plan, shell: Shell, missing: Iterable[str], target: Target, *, copy: bool
) -> MemoryPlan:
    """Add up what each tensor takes: nothing where it stays a view, its result where it is cast, copied or joined.

    A target that does not say what it takes is counted as one that copies every tensor. `missing` are parameters
    that the class initialises.
    """
    anonymous = spilled = mapped = largest = 0
    # Asked once: for a protocol the question takes 13 µs, a fifth of what a small tensor takes in all.
    accounted = target if isinstance(target, AccountedTarget) else None
    for key, tensor in plan.tensors:
        own = copy or not isinstance(tensor, TensorRef) or key in plan.copied
        taken, on_disk = _result_bytes(key, tensor, accounted)
        spilled += on_disk
        if taken or on_disk:
            anonymous += taken
            largest = max(largest, tensor.nbytes if own else 0)
        elif own:
            anonymous += tensor.nbytes
        else:
            mapped += tensor.nbytes
    made = [name for name in {*missing, *plan.in_place} if name in shell.slots]
    anonymous += sum(shell.slots[name].nbytes for name in made)
    room = _CASTING if anonymous or spilled else _MAPPING
    return MemoryPlan(anonymous, room + _A_TENSOR * len(shell.slots) + largest, spilled, mapped)


def _result_bytes(key: str, tensor: Derived, target: AccountedTarget | None) -> tuple[int, int]:
    dtype = DTYPES[tensor.dtype]
    if target is not None:
        return target.result_bytes(key, dtype, tensor.numel)
    return tensor.numel * max(4, dtype.itemsize), 0


def refuse_above(stated: MemoryPlan, max_memory: int | None) -> None:
    """Raise MemoryLimitError when a load states more than `max_memory` bytes, UsageError for what is no number."""
    if max_memory is None:
        return
    if type(max_memory) is not int or max_memory < 0:
        raise UsageError(
            f"max_memory={max_memory!r} is no number of bytes",
            cure="pass one number: what the load may add to this process's anonymous memory; "
            "offloading by device is not done",
        )
    if stated.peak > max_memory:
        raise MemoryLimitError(
            f"the load takes {size_of(stated.peak)} of anonymous memory at its peak "
            f"({size_of(stated.anonymous)} stay), and max_memory allows {size_of(max_memory)}; nothing was loaded",
            cure='keep the stored dtype (dtype="auto", copy=False), which maps the files; '
            "or pass spill=FOLDER, and casts go to evictable file-backed memory",
        )
