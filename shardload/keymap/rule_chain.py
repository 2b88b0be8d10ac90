"""A chain of rules, with one method for each kind of rule that returns a longer chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardload.keymap.alias import Alias
from shardload.keymap.drop import Drop
from shardload.keymap.rename import Rename
from shardload.keymap.rows import PadRows, SliceRows
from shardload.keymap.split import Cat, Split
from shardload.keymap.stack import Stack, Unstack
from shardload.keymap.transpose import Transpose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

    from shardload.keymap.rule import Rule


@dataclass(frozen=True)
class RuleChain:
    """Rules in the order in which they are applied; immutable."""

    rules: tuple[Rule, ...] = ()

    def _with(self, *rules: Rule) -> Self:
        # A longer chain is bound to no checkpoint: fingerprints and the like are not passed on.
        return type(self)((*self.rules, *rules))

    def __add__(self, other: RuleChain) -> Self:
        return self._with(*other.rules)

    def rename(self, source: str, target: str, *, everywhere: bool = False) -> Self:
        """Add a rename from one template to another.

            >>> from shardload import KeyMap
            >>> KeyMap().rename("h.{}.{...}", "layers.{+1}.{...}").apply("h.0.w")
            'layers.1.w'
            >>> KeyMap().rename("_fsdp", "", everywhere=True).apply("h.0._fsdp.w")
            'h.0.w'

        With `everywhere` whole segments are replaced wherever they stand. Raises UsageError.
        """
        return self._with(Rename(source, target, everywhere))

    def drop(self, pattern: str) -> Self:
        """Add a rule that leaves out the keys that match a template or an fnmatch pattern.

        >>> from shardload import KeyMap
        >>> KeyMap().drop("*.inv_freq").map_keys(["h.0.w", "h.0.inv_freq"])
        {'h.0.w': 'h.0.w', 'h.0.inv_freq': None}
        """
        return self._with(Drop(pattern))

    def alias(self, source: str, target: str) -> Self:
        """Add a second name for the keys that match; they keep the first.

        >>> import torch
        >>> from shardload import KeyMap, open_checkpoint
        >>> torch.save({"embed": torch.tensor([1, 2])}, "model.bin")
        >>> dict(open_checkpoint("model.bin").items(key_map=KeyMap().alias("embed", "head")))
        {'embed': tensor([1, 2]), 'head': tensor([1, 2])}
        """
        return self._with(Alias(source, target))

    def split(
        self, source: str, targets: Sequence[str], sizes: Sequence[int] | None = None, dim: int = 0
    ) -> Self:
        """Add a split of one tensor into several along `dim`, of the given `sizes` or of equal ones.

        >>> import torch
        >>> from shardload import KeyMap, open_checkpoint
        >>> torch.save({"qkv": torch.tensor([1, 2, 3, 4])}, "model.bin")
        >>> key_map = KeyMap().split("qkv", ["q", "k", "v"], [2, 1, 1])
        >>> dict(open_checkpoint("model.bin").items(key_map=key_map))
        {'q': tensor([1, 2]), 'k': tensor([3]), 'v': tensor([4])}
        """
        return self._with(Split(source, tuple(targets), None if sizes is None else tuple(sizes), dim))

    def cat(
        self, sources: Sequence[str], target: str, dim: int = 0, sizes: Sequence[int] | None = None
    ) -> Self:
        """Add a join of several tensors along `dim`, in the order of `sources`; `sizes` is what each has there.

        >>> import torch
        >>> from shardload import KeyMap, open_checkpoint
        >>> torch.save({"gate": torch.tensor([1, 2]), "up": torch.tensor([3])}, "model.bin")
        >>> dict(open_checkpoint("model.bin").items(key_map=KeyMap().cat(["gate", "up"], "gate_up")))
        {'gate_up': tensor([1, 2, 3])}
        """
        return self._with(Cat(tuple(sources), target, dim, None if sizes is None else tuple(sizes)))

    def stack(self, source: str, target: str, dim: int = 0, count: int | None = None) -> Self:
        """Add a stack of the tensors that `{n}` numbers from 0; `dim` is the new dimension, `count` its size.

        >>> import torch
        >>> from shardload import KeyMap, open_checkpoint
        >>> torch.save({"w.0": torch.tensor([1, 2]), "w.1": torch.tensor([3, 4])}, "model.bin")
        >>> dict(open_checkpoint("model.bin").items(key_map=KeyMap().stack("w.{n}", "w")))["w"].tolist()
        [[1, 2], [3, 4]]
        """
        return self._with(Stack(source, target, dim, count))

    def unstack(self, source: str, target: str, dim: int = 0, count: int | None = None) -> Self:
        """Add a rule that makes one tensor of each entry of a dimension; `{n}` in the target is the entry's number.

        >>> import torch
        >>> from shardload import KeyMap, open_checkpoint
        >>> torch.save({"w": torch.tensor([[1, 2], [3, 4]])}, "model.bin")
        >>> dict(open_checkpoint("model.bin").items(key_map=KeyMap().unstack("w", "w.{n}")))
        {'w.0': tensor([1, 2]), 'w.1': tensor([3, 4])}
        """
        return self._with(Unstack(source, target, dim, count))

    def transpose(self, source: str, dims: tuple[int, int] = (-2, -1)) -> Self:
        """Add an exchange of two dimensions.

        >>> import torch
        >>> from shardload import KeyMap, open_checkpoint
        >>> torch.save({"w": torch.tensor([[1, 2, 3], [4, 5, 6]])}, "model.bin")
        >>> dict(open_checkpoint("model.bin").items(key_map=KeyMap().transpose("w")))["w"].tolist()
        [[1, 4], [2, 5], [3, 6]]
        """
        return self._with(Transpose(source, dims))

    def slice_rows(self, source: str, stop: int, start: int = 0) -> Self:
        """Add a choice of rows (entries of dimension 0), from `start` up to `stop`.

        >>> import torch
        >>> from shardload import KeyMap, open_checkpoint
        >>> torch.save({"embed": torch.tensor([1, 2, 3, 0])}, "model.bin")
        >>> dict(open_checkpoint("model.bin").items(key_map=KeyMap().slice_rows("embed", 3)))
        {'embed': tensor([1, 2, 3])}
        """
        return self._with(SliceRows(source, stop, start))

    def pad_rows(self, source: str, rows: int, value: float = 0, of: int | None = None) -> Self:
        """Add rows (entries of dimension 0) that hold `value` until there are `rows`; `of` says how many are stored.

        >>> import torch
        >>> from shardload import KeyMap, open_checkpoint
        >>> torch.save({"embed": torch.tensor([1, 2])}, "model.bin")
        >>> dict(open_checkpoint("model.bin").items(key_map=KeyMap().pad_rows("embed", 4)))
        {'embed': tensor([1, 2, 0, 0])}
        """
        return self._with(PadRows(source, rows, value, of))
