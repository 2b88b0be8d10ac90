"""MiniMind's files: `<module>.lora.A.weight` and `<module>.lora.B.weight`; the delta is B @ A, with no scale."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shardload.adapters.adapter import AdapterContent, LoraEntry, ReplacedEntry, Scaling
from shardload.adapters.formats.pairs import sort_pairs

if TYPE_CHECKING:
    from shardload.adapters.adapter import AdapterFile, ReadOptions

_KEY = re.compile(r"(?:(?P<path>.+)\.)?lora\.(?P<part>[AB])\.weight")
_ENDS = ("lora.A.weight", "lora.B.weight")
_SPELLING = {"a": "A", "b": "B"}


class MiniMind:
    """MiniMind's `.pth` files. MiniMind adapts square layers only; here any layer that has keys is adapted."""

    name = "MiniMind"

    def matches(self, file: AdapterFile) -> bool:
        """Return whether some key ends in `lora.A.weight` or `lora.B.weight`."""
        return any(key.endswith(_ENDS) and _KEY.fullmatch(key) for key in file.checkpoint.tensors)

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterContent:
        """Sort every stored tensor into an entry or a fault; no weight is read."""
        scaling = Scaling(fixed=1.0) if options.alpha is None else Scaling(options.alpha)
        pairs = sort_pairs(file, _KEY, _SPELLING)
        return AdapterContent(
            format=self.name,
            loras=tuple(LoraEntry(path, parts["a"], parts["b"], scaling) for path, parts in pairs.whole()),
            replaced=tuple(
                ReplacedEntry(path, attribute, ref, declared=False)
                for (path, attribute), ref in pairs.others.items()
            ),
            faults=tuple(pairs.faults),
        )
