"""Writes a model that lies over ranks: each rank writes whole tensors into files of its own, rank 0 the index.

A tensor is gathered on the rank that writes it, when it is written, and on no other: no rank holds more than one whole
tensor beside its part. The ranks work in rounds: in each, every rank gets the next tensor of its own files.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import accumulate, product
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor

from shardload._system.atomic_file import require_space
from shardload._system.file_errors import write_errors_said
from shardload._system.progress import ProgressMeter
from shardload.checkpoint.sources.names import STAGING
from shardload.errors import RanksError
from shardload.keymap import leaves
from shardload.writing.layout import Layout
from shardload.writing.model_output import model_output
from shardload.writing.output import OutputShard
from shardload.writing.output_folder import folder_to_write
from shardload.writing.output_writer import disk_room, write_beside
from shardload.writing.ranks_state import RanksState, shape_of
from shardload.writing.shard_file import verify_shard, write_shard
from shardload.writing.staging import staging

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from shardload._system.agreement import Agreement
    from shardload._system.progress import ProgressOption
    from shardload.keymap import Derived, KeyMap
    from shardload.placement.cut import Ranges
    from shardload.writing.output import Output


def local(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict with what this process holds of each tensor; names of one tensor stay names of one."""
    parts = {id(value): value.to_local() for value in state.values() if isinstance(value, DTensor)}
    return {key: parts.get(id(value), value) for key, value in state.items()}


def write_together(
    folder: str | os.PathLike[str],
    state: Mapping[str, torch.Tensor],
    key_map: KeyMap,
    limit: int,
    beside: Mapping[str, bytes],
    ranks: Agreement,
    *,
    verify: bool,
    progress: ProgressOption,
) -> Output:
    """Write a state dict that lies over ranks; every one of them calls this. Return what was written.

    Files appear when all of them are complete on all ranks. Raises what `write_output` raises, on every rank, and
    RanksError where a rank has ended.
    """
    with ranks.judging():
        target = folder_to_write(folder)
    with _group_of(ranks) as group:
        over = RanksState(state, ranks, group)
        rounds = Rounds(over, ranks, group)
        with ranks.judging():
            total = sum(value.numel() * value.element_size() for value in over.tensors.values())
            limit = min(limit, -(-total // len(ranks.ranks)) or 1)
            output = model_output(over.tensors, key_map, limit, beside, rounds)
            layouts = {each.name: Layout.of(each) for each in output.shards if isinstance(each, OutputShard)}
        headers = [layout.header for layout in layouts.values()]
        ranks.require_same("the tensors that are saved", repr(headers))
        rounds.share_out(layouts)
        return _write(target, output, layouts, rounds, ranks, verify=verify, progress=progress)


def _write(
    target: Path,
    output: Output,
    layouts: Mapping[str, Layout],
    rounds: Rounds,
    ranks: Agreement,
    *,
    verify: bool,
    progress: ProgressOption,
) -> Output:
    beside = output.beside
    with ExitStack() as stack, write_errors_said(target):
        stage = None
        if ranks.is_first:
            stage = stack.enter_context(staging(target, "", replaces=True))
            stage.refuse_others(output.names, alone=output.alone)
            output = stage.without_unchanged(output)
            stage.begin()
            require_space(target, disk_room(target, output, layouts).needed)
        ranks.meet("the folder is locked")
        own = [layouts[name] for name in rounds.files[ranks.rank]]
        with ProgressMeter(progress, sum(each.nbytes for each in own), "writing") as meter, rounds.in_step():
            for name, layout in zip(rounds.files[ranks.rank], own, strict=True):
                meter.shard(name)
                draft = target / STAGING / name
                sums = write_shard(draft, layout, meter, summed=verify)
                if verify:
                    verify_shard(draft, layout, sums)
        ranks.meet("all files are written")
        if stage is not None:
            texts = {**output.beside, **dict([output.index] if output.index else [])}
            for name, content in texts.items():
                write_beside(stage.draft(name), content)
            for name in output.names:
                stage.finish(name)
            stage.move_in(output.names)
        ranks.meet("the files are in their places")
    return replace(output, beside=beside)


@contextmanager
def _group_of(ranks: Agreement) -> Iterator[Any]:
    """Yield a process group of some ranks, None for all of them; one that is made is gone afterwards."""
    if list(ranks.ranks) == list(range(distributed.get_world_size())):
        yield None
        return
    ranks.meet("a process group")  # torch waits as long as its own time-out says
    group = distributed.new_group(list(ranks.ranks), use_local_synchronization=True)
    try:
        yield group
    finally:
        distributed.destroy_process_group(group)


class Rounds:
    """Gathers whole tensors on the ranks that write them; an `OverRanks` of `model_output`."""

    def __init__(self, state: RanksState, ranks: Agreement, group: Any) -> None:
        self.whole: dict[str, torch.Tensor] = {}
        self.made: dict[str, Derived] = {}
        self.files: dict[int, list[str]] = {}
        self._state = state
        self._ranks = ranks
        self._group = group
        self._queues: dict[int, list[Derived]] = {}
        self._at = 0
        self._ended = False
        own = next((value for value in state.tensors.values() if isinstance(value, DTensor)), None)
        kind = own.device_mesh.device_type if own is not None else "cpu"
        self._device = (
            torch.device(kind)
            if kind == "cpu"
            else torch.device(kind, torch.get_device_module(kind).current_device())
        )

    def holds_part(self, key: str) -> bool:
        """Whether the tensor of that name lies over ranks."""
        return isinstance(self._state.tensors[key], DTensor)

    def share_out(self, layouts: Mapping[str, Layout]) -> None:
        """Give each file to a rank: the largest first, each to the rank with the fewest bytes."""
        sizes = dict.fromkeys(self._ranks.ranks, 0)
        self.files = {rank: [] for rank in sizes}
        for name in sorted(layouts, key=lambda each: (-layouts[each].size, each)):
            rank = min(sizes, key=lambda each: (sizes[each], each))
            self.files[rank].append(name)
            sizes[rank] += layouts[name].size
        for rank, names in self.files.items():
            self._queues[rank] = [
                self.made[tensor.name] for name in names for tensor, _ in layouts[name].places
            ]

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Take part in the rounds of the others after the block; an error in it ends the rounds of all."""
        last = max(map(len, self._queues.values()))
        try:
            yield
        except BaseException:
            if self._at < last and not self._ended:
                self._begin(failed=True)
            raise
        while self._at < last:
            self._round()
            self.whole.clear()

    @contextmanager
    def gathered(self, tensor: Derived) -> Iterator[None]:
        """Have in `whole` what the next tensor of this rank is made of."""
        assert self._queues[self._ranks.rank][self._at] == tensor
        self._round()
        try:
            yield
        finally:
            self.whole.clear()

    def _begin(self, *, failed: bool) -> None:
        """Let all ranks begin a round, or none: they learn here that one has failed."""
        flag = torch.tensor([int(failed)], device=self._device)
        distributed.all_reduce(flag, group=self._group)
        if int(flag) and not failed:
            self._ended = True
            self._ranks.meet("a round")  # which raises that rank's error
            raise RanksError("a rank has failed", where=f"rank {self._ranks.rank}")

    def _round(self) -> None:
        try:
            self._begin(failed=False)
            operations: list[distributed.P2POp] = []
            arriving: list[tuple[torch.Tensor, Ranges, torch.Tensor]] = []
            for writer, queue in self._queues.items():
                if self._at < len(queue):
                    for key in dict.fromkeys(ref.name for ref in leaves(queue[self._at])):
                        self._exchange(key, writer, operations, arriving)
            for work in distributed.batch_isend_irecv(operations) if operations else ():
                work.wait()
        except RuntimeError as error:
            self._ended = True
            raise self._ranks.lost(error) from error
        for whole, ranges, part in arriving:
            _put(part.view(whole.dtype).view(shape_of(ranges)), whole, ranges)
        self._at += 1

    def _exchange(
        self,
        key: str,
        writer: int,
        operations: list[distributed.P2POp],
        arriving: list[tuple[torch.Tensor, Ranges, torch.Tensor]],
    ) -> None:
        """Add what this rank has to send or receive for one tensor of a writer."""
        value, own = self._state.tensors[key], self._ranks.rank
        whole = None
        if own == writer:
            whole = self.whole[key] = torch.empty(value.shape, dtype=value.dtype, device="cpu")
        for ranges, holder in self._state.holders(key, writer).items():
            if holder == own:
                part = (value.to_local() if isinstance(value, DTensor) else value).detach()
                if whole is not None:
                    _put(part, whole, ranges)
                else:
                    operations.append(distributed.P2POp(distributed.isend, _flat(part), writer, self._group))
            elif whole is not None:
                count = prod(shape_of(ranges)) * value.element_size()
                part = torch.empty(count, dtype=torch.uint8, device=self._device)
                operations.append(distributed.P2POp(distributed.irecv, part, holder, self._group))
                arriving.append((whole, ranges, part))


def _put(part: torch.Tensor, whole: torch.Tensor, ranges: Ranges) -> None:
    """Copy a part to its places in a whole tensor: one for each choice of a range in every dimension."""
    along = []
    for each in ranges:
        ends = list(accumulate(stop - start for start, stop in each))
        starts = [0, *ends[:-1]]
        along.append(
            [(slice(*to), slice(*of)) for to, of in zip(each, zip(starts, ends, strict=True), strict=True)]
        )
    for block in product(*along):
        whole[tuple(to for to, _ in block)].copy_(part[tuple(of for _, of in block)])


def _flat(part: torch.Tensor) -> torch.Tensor:
    return part.contiguous().view(-1).view(torch.uint8)
