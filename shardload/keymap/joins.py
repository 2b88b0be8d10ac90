"""Joins: tensors of a model that a key map puts together from several stored ones, while their parts come in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.keymap import Joined, leaves
from shardload.keymap.assembly import Assembly

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from shardload.keymap import Derived
    from shardload.tensor_ref import TensorRef


class Joins:
    """Takes parts in any order. Memory for a whole is made when its first part comes, and handed over with its last."""

    def __init__(self, tensors: Iterable[tuple[str, Derived]]) -> None:
        self._wanted = {key: tensor for key, tensor in tensors if isinstance(tensor, Joined)}
        self._begun: dict[str, Assembly] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._wanted

    def take(self, key: str, ref: TensorRef, part: torch.Tensor) -> torch.Tensor | None:
        """Copy a part into its place; return the whole when it was the last, else None."""
        if key not in self._begun:
            self._begun[key] = Assembly(self._wanted[key])
        if not self._begun[key].take(ref, part):
            return None
        return self._begun.pop(key).result

    def without_parts(self) -> Iterable[tuple[str, torch.Tensor]]:
        """Yield tensors that hold nothing but padding."""
        for key, tensor in self._wanted.items():
            if not any(leaves(tensor)):
                yield key, Assembly(tensor).result
