"""E-ADAPTER: a LoRA adapter that was saved together with its base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.adapter_keys import LORA
from shardload.diagnosis.finding import Case, Finding
from shardload.errors import Wording
from shardload.errors.wording import in_python
from shardload.keys import collapse

if TYPE_CHECKING:
    from collections.abc import Sequence


class WithAdapterRule:
    """Applies where the weights that LoRA adapts are stored beside its own, for a model without adapter layers."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding: without the adapter's tensors the base loads, and they may come on it afterwards."""
        keys = case.adapter_keys
        if not keys:
            return ()
        found = {segment: None for key in keys for segment in key.split(".") if segment in LORA}
        patterns = [f"*.{segment}{'' if 'embedding' in segment else '.'}*" for segment in found]
        without = Wording("{allow_unexpected}", allow_unexpected=patterns)
        after = (
            f"this loads the base alone, without the trained {', '.join(found)}: {_to_keep_it(case, keys)}"
        )
        return (
            Finding(
                "E-ADAPTER",
                f"a LoRA adapter is stored together with its base ({len(keys)} of {len(case.stored)} tensors)",
                explained=len(keys),
                nbytes=case.nbytes(keys),
                cure=Wording("{0}; {1}", without, after),
                evidence=tuple(collapse(keys)[:2]),
                settles=frozenset(keys),
                step=without,
                after=after,
            ),
        )


def _to_keep_it(case: Case, keys: Sequence[str]) -> str:
    """Return how the adapter comes on the base: an adapter is one file, with one name in its keys."""
    leaves = {"weight", "bias"}
    names = {tuple(p for p in key.partition(".lora_")[2].split(".")[1:] if p not in leaves) for key in keys}
    place = case.where
    if case.files != 1 or place is None or len(names) != 1 or place.state_dict or place.variant:
        return "no cure is known that keeps them, so save the adapter alone with PEFT's save_pretrained"
    # In Python's words: the command's --adapter has no options for these.
    strict = in_python("strict", False)
    if "adapter_config.json" in case.beside:
        return f"to keep them, load so and then call load_adapter(model, {place.in_python}, {strict})"
    call = f"load_adapter(model, {place.in_python}, {in_python('alpha', ...)}, {strict})"
    alpha = "alpha is the lora_alpha of the training, which no file here says"
    return f"to keep them, load so and then call {call}; {alpha}"
