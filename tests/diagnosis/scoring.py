"""How well the doctor does on a family: the counts that `halves.py` defines, taken through the map that it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from shardload.diagnosis.finding import Case
from shardload.keymap import Joined
from shardload.keymap.views import contiguous_strides
from tests.diagnosis.headers import refs

if TYPE_CHECKING:
    from tests.diagnosis.corpus import Pair

SURE = 0.95
"""The confidence from which a rule may be applied unasked, if no layout is unproven."""


@dataclass
class Score:
    """The counts of one family; `missed` are model keys that are not right, `wrong_keys` those that were applied."""

    family: str
    keys: int = 0
    right: int = 0
    applied: int = 0
    wrong: int = 0
    missed: list[str] = field(default_factory=list)
    wrong_keys: list[str] = field(default_factory=list)

    @property
    def perfect(self) -> bool:
        return self.right == self.keys


def realised(tensor, blob: torch.Tensor) -> torch.Tensor:
    """Return the values of what a map makes of headers; `blob` holds every stored tensor, one behind the other."""
    if isinstance(tensor, Joined):
        return torch.cat([realised(part, blob) for part in tensor.parts], tensor.dim)
    strides = tensor.strides or contiguous_strides(tensor.shape)
    return torch.as_strided(blob, tensor.shape, strides, tensor.span.start // 4)


def case_of_state(
    old: dict[str, torch.Tensor], new: dict[str, torch.Tensor], classes: dict[str, str]
) -> Case:
    """Return the case of two state dicts of 32-bit integers."""
    stored = refs({key: tuple(value.shape) for key, value in old.items()}, "I32")
    return Case.of({key: tuple(value.shape) for key, value in new.items()}, stored, {}, classes)


def score(pair: Pair) -> Score:
    """Return the counts of one family."""
    classes = {path: type(module).__name__ for path, module in pair.model.named_modules()}
    case = case_of_state(pair.old, pair.new, classes)
    blob = torch.cat([value.flatten() for value in pair.old.values()])
    table = case.solution.key_map.map_headers(dict(case.stored)).tensors
    right = {
        key
        for key, value in pair.new.items()
        if key in table
        and table[key].shape == tuple(value.shape)
        and torch.equal(realised(table[key], blob), value)
    }
    tied: dict[int, set[str]] = {}
    for key, value in pair.new.items():
        tied.setdefault(value.data_ptr(), set()).add(key)
    right |= {key for names in tied.values() if names & right for key in names}
    sure = {
        key
        for link in case.solution.board.links
        if link.confidence >= SURE and not link.unproven
        for family in link.wanted
        for key in family.names
    }
    wrong = sorted(sure - right)
    missed = [key for key in pair.new if key not in right]
    return Score(
        pair.family, len(pair.new), len(right & pair.new.keys()), len(sure), len(wrong), missed, wrong
    )
