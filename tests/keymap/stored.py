"""Stored tensors in memory with their headers: what rules make of the headers is read as torch tensors."""

from __future__ import annotations

import torch

from shardload import KeyMap
from shardload.keymap.assembly import assemble, view_of
from tests.keymap.random_maps import refs_of


class Stored:
    """Tensors of consecutive numbers, no two of which are equal; `refs` are their headers."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self.refs = refs_of({name.replace("__", "."): shape for name, shape in shapes.items()})
        self.tensors = {
            name: torch.arange(ref.span.start // 4, ref.span.stop // 4).float().view(ref.shape)
            for name, ref in self.refs.items()
        }

    def read(self, tensor) -> torch.Tensor:
        """Return a tensor of the model's side, its parts copied together where they have to be."""
        return assemble(tensor, lambda ref: view_of(self.tensors[ref.name], self.refs[ref.name], ref))

    def after(self, rule) -> dict[str, torch.Tensor]:
        """Return the tensors that a rule makes of these."""
        made = {name: self.read(tensor) for name, tensor in rule.transform(dict(self.refs)).table.items()}
        assert {name: made[name].shape for name in made} == {
            name: tensor.shape for name, tensor in rule.transform(dict(self.refs)).table.items()
        }
        return made


def assert_same(made: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Assert the same names in the same order, and equal tensors."""
    assert list(made) == list(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(made[name], tensor), name


def shapes(key_map: KeyMap, **stored) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a map makes of stored ones; a dot in a name is written `__`."""
    refs = refs_of({name.replace("__", "."): shape for name, shape in stored.items()})
    return {name: tensor.shape for name, tensor in key_map.map_headers(refs).tensors.items()}
