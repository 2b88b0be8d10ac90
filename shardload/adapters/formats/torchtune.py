"""torchtune's adapter checkpoints: `lora_a.weight` (rank, in), `lora_b.weight` (out, rank), `magnitude` with DoRA."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shardload.adapters.adapter import AdapterContent, LoraEntry, ReplacedEntry, Scaling
from shardload.adapters.formats.pairs import sort_pairs
from shardload.adapters.settings import Checks
from shardload.errors import CorruptError, UsageError, Wording

if TYPE_CHECKING:
    from shardload.adapters.adapter import AdapterFile, ReadOptions

_KEY = re.compile(r"(?:(?P<path>.+)\.)?(?P<part>lora_[ab]\.weight|magnitude)")
_SPELLING = {"a": "lora_a.weight", "b": "lora_b.weight", "magnitude": "magnitude"}


class Torchtune:
    """LoRA and DoRA of torchtune, with torchtune's module names unless `key_map` renames them."""

    name = "torchtune"

    def matches(self, file: AdapterFile) -> bool:
        """Return whether some key ends in `lora_a.weight` or `lora_b.weight`."""
        return any(key.endswith((".lora_a.weight", ".lora_b.weight")) for key in file.checkpoint.tensors)

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterContent:
        """Sort every stored tensor into an entry or a fault; no weight is read.

        Raises UsageError when neither alpha nor a config with lora_alpha gives a scale.
        """
        check = Checks(file.config or {})
        alpha = options.alpha
        if alpha is None and "lora_alpha" in check.config:
            alpha = check.number("lora_alpha", None, low=-1e12, high=1e12)
        if check.faults:
            raise CorruptError("the adapter's config is not valid", where="; ".join(check.faults))
        if alpha is None:
            raise UsageError(
                "a torchtune file does not hold alpha, and the scale is alpha / rank",
                where=file.label,
                cure=Wording("pass {alpha}, the lora_alpha of the recipe", alpha=...),
            )
        pairs = sort_pairs(file, _KEY, _SPELLING)
        loras = tuple(
            LoraEntry(path, parts["a"], parts["b"], Scaling(alpha), magnitude=parts.get("magnitude"))
            for path, parts in pairs.whole()
        )
        replaced = tuple(
            ReplacedEntry(path, attribute, ref, declared=False)
            for (path, attribute), ref in pairs.others.items()
        )
        return AdapterContent(format=self.name, loras=loras, replaced=replaced, faults=tuple(pairs.faults))
