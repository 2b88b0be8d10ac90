"""The loop of many tutorials: a real model, into which each shard is copied after it is read whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

LABEL = "tutorial: real model, `load_state_dict(strict=False)` in a loop"


def prepare(job: dict[str, Any]) -> Callable[[], nn.Module]:
    from pathlib import Path

    import torch
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    def load() -> nn.Module:
        config = LlamaConfig.from_pretrained(job["folder"])
        torch.set_default_dtype(torch.bfloat16 if job["dtype"] == "auto" else torch.float32)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
        for path in sorted(Path(job["folder"]).glob(f"*.{job['suffix']}")):
            state = load_file(path) if job["suffix"] == "safetensors" else torch.load(path)
            model.load_state_dict(state, strict=False)
        return model.eval()

    return load
