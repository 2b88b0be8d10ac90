"""RanksState: the state dict that ranks hold together, and which of them holds which part of each tensor."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from shardload._system.gathered import gathered
from shardload.errors import RanksError, UnsupportedError
from shardload.placement.mesh_ranks import ranks_that_hold
from shardload.placement.sharded import part_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shardload._system.agreement import Agreement
    from shardload.placement.cut import Ranges

_SHOWN = 8

Headers = dict[str, tuple[list[int], str, str]]
"""Shape, dtype and the first name of each tensor, by name."""


class RanksState:
    """What ranks hold together. Making one is collective. Stages of a pipeline have different tensors.

    `tensors` has this rank's own, and of those of other stages the shape and the dtype. Raises RanksError where ranks
    have different tensors of one name, or a rank of a stage has a name that others of it have not.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], ranks: Agreement, group: Any) -> None:
        with ranks.judging():
            own = _told(state)
        try:
            told = dict(zip(ranks.ranks, gathered(own, group), strict=True))
        except RuntimeError as error:
            raise ranks.lost(error) from error
        self._stages = {rank: each["stage"] for rank, each in told.items()}
        self._held = {rank: _ranges(each["held"]) for rank, each in told.items()}
        with ranks.judging():
            _refuse_names_of_some(told)
            self.tensors = _together(state, [each["headers"] for each in told.values()])

    def holders(self, key: str, writer: int) -> dict[Ranges, int]:
        """Return the parts of a tensor, and who sends each: the writer itself where it holds one.

        All are of one stage: another one that has the tensor too may have cut it in another way.
        """
        parts: dict[Ranges, int] = {}
        having = [rank for rank in (writer, *self._held) if key in self._held[rank]]
        for rank in having:
            ranges = self._held[rank][key]
            if self._stages[rank] == self._stages[having[0]] and all(shape_of(ranges)):
                parts.setdefault(ranges, rank)
        if sum(prod(shape_of(ranges)) for ranges in parts) != prod(self.tensors[key].shape):
            raise UnsupportedError(
                f"the ranks do not hold {key} in parts that make a whole", where=str(list(parts)[:4])
            )
        return parts


def shape_of(ranges: Ranges) -> tuple[int, ...]:
    """Return the shape of a part."""
    return tuple(sum(stop - start for start, stop in each) for each in ranges)


def _told(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    first: dict[int, str] = {}
    return {
        "stage": ranks_that_hold(value for value in state.values() if isinstance(value, DTensor)),
        "headers": {
            key: (list(value.shape), str(value.dtype), first.setdefault(id(value), key))
            for key, value in state.items()
        },
        "held": {
            key: part_of(key, value).cut.ranges
            if isinstance(value, DTensor)
            else tuple(((0, size),) for size in value.shape)
            for key, value in state.items()
        },
    }


def _ranges(told: Mapping[str, list[Any]]) -> dict[str, Ranges]:
    return {
        key: tuple(tuple((first, last) for first, last in each) for each in ranges)
        for key, ranges in told.items()
    }


def _refuse_names_of_some(told: Mapping[int, dict[str, Any]]) -> None:
    """Raise RanksError for names that some ranks of a stage have and others have not."""
    stages: dict[tuple[int, ...], dict[int, Headers]] = {}
    for rank, each in told.items():
        stages.setdefault(tuple(each["stage"]), {})[rank] = each["headers"]
    of_some: list[str] = []
    for headers in stages.values():
        for name in dict.fromkeys(name for own in headers.values() for name in own):
            having = [rank for rank, own in headers.items() if name in own]
            if len(having) < len(headers):
                of_some.append(f"{name}: rank {_numbers(having)} of {_numbers(headers)}")
    if of_some:
        more = f", and {len(of_some) - _SHOWN} more" if len(of_some) > _SHOWN else ""
        raise RanksError(
            "some ranks of the model have tensors of names that the others have not",
            where="; ".join(of_some[:_SHOWN]) + more,
            cure="register a parameter or a buffer on all ranks of a model, or on none",
        )


def _numbers(ranks: Iterable[int]) -> str:
    ranks = list(ranks)
    return ", ".join(map(str, ranks[:_SHOWN])) + (" …" if len(ranks) > _SHOWN else "")


def _together(own: Mapping[str, torch.Tensor], told: Iterable[Headers]) -> dict[str, torch.Tensor]:
    headers: Headers = {}
    for each in told:
        for key, header in each.items():
            known = headers.setdefault(key, header)
            parted = known[2] != header[2] and {known[2], header[2]} <= headers.keys() & each.keys()
            if known[:2] != header[:2] or parted:
                raise RanksError(
                    f"the ranks have different tensors of the name {key}",
                    where=f"{known} and {header}",
                    cure="let all ranks save the same model",
                )
    values: dict[str, torch.Tensor] = {}
    for key, (shape, dtype, name) in headers.items():
        value = own.get(key)
        if value is None:  # which takes the memory of one element
            value = torch.empty((), dtype=getattr(torch, dtype.removeprefix("torch."))).expand(shape)
        values[key] = values.get(name, value)
    return values
