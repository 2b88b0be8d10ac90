"""loralib's files: `torch.save(lora.lora_state_dict(model))`, with names without a suffix and without alpha."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shardload.adapters.adapter import AdapterContent, LoraEntry, ReplacedEntry, Scaling
from shardload.adapters.formats.pairs import Pairs, sort_pairs
from shardload.errors import UsageError, Wording

if TYPE_CHECKING:
    from shardload.adapters.adapter import AdapterFile, ReadOptions

_KEY = re.compile(r"(?:(?P<path>.+)\.)?(?P<part>lora_[AB])")
_SPELLING = {"a": "lora_A", "b": "lora_B"}


class Loralib:
    """Linear, Embedding, Conv2d and MergedLinear of loralib, with the biases that `lora_state_dict(bias=)` adds."""

    name = "loralib"

    def matches(self, file: AdapterFile) -> bool:
        """Return whether some key ends in `lora_A` or `lora_B` and nothing more."""
        return any(
            key.endswith(("lora_A", "lora_B")) and _KEY.fullmatch(key) for key in file.checkpoint.tensors
        )

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterContent:
        """Sort every stored tensor into an entry or a fault; no weight is read.

        Raises UsageError without alpha: it is in the training script only.
        """
        if options.alpha is None:
            raise UsageError(
                "a loralib file does not hold alpha, and the scale is alpha / rank",
                where=file.label,
                cure=Wording("pass {alpha}, the lora_alpha of the training script", alpha=...),
            )
        pairs = sort_pairs(file, _KEY, _SPELLING)
        loras = tuple(
            LoraEntry(
                path, parts["a"], parts["b"], Scaling(options.alpha), merged=True, enable=options.enable_lora
            )
            for path, parts in pairs.whole()
        )
        replaced = tuple(_replaced(pairs))
        return AdapterContent(
            format=self.name, loras=loras, replaced=replaced, targets=(), faults=tuple(pairs.faults)
        )


def _replaced(pairs: Pairs) -> list[ReplacedEntry]:
    """Return the trained biases, and other tensors, which the match with the model accepts or refuses."""
    entries = []
    for (path, attribute), ref in pairs.others.items():
        # loralib's convolutions keep the plain convolution in `conv`.
        owner = path.removesuffix(".conv") if path.removesuffix(".conv") in pairs.layers else path
        is_bias = "bias" in attribute
        entries.append(ReplacedEntry(owner, attribute, ref, declared=is_bias, tied=is_bias))
    return entries
