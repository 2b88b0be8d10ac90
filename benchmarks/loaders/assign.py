"""torch alone: a model on meta, and `load_state_dict(assign=True)` for each shard, mapped where torch can map it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

LABEL = "`load_state_dict(assign=True)` shard by shard"


def prepare(job: dict[str, Any]) -> Callable[[], nn.Module]:
    from pathlib import Path

    make = _shell_of(job)
    read = _reader_of(job)

    def load() -> nn.Module:
        model = make()
        for path in sorted(Path(job["folder"]).glob(f"*.{job['suffix']}")):
            model.load_state_dict(read(path), strict=False, assign=True)
        return model.eval()

    return load


def _shell_of(job: dict[str, Any]) -> Callable[[], nn.Module]:
    import torch

    if job["kind"] == "many":
        from benchmarks.models import ManyLinears

        with_config = SimpleNamespace(**job["config"])

        def make() -> nn.Module:
            with torch.device("meta"):
                return ManyLinears(with_config)

        return make
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    def make_llama() -> nn.Module:
        config = LlamaConfig.from_pretrained(job["folder"])
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        # No checkpoint holds the rotary table, so the table would stay on meta.
        model.model.rotary_emb = LlamaRotaryEmbedding(config)
        return model

    return make_llama


def _reader_of(job: dict[str, Any]) -> Callable[[Any], dict[str, torch.Tensor]]:
    import torch
    from safetensors.torch import load_file

    def read(path: Any) -> dict[str, torch.Tensor]:
        state = load_file(path) if job["suffix"] == "safetensors" else torch.load(path, mmap=True)
        if job["dtype"] == "float32":
            for name in state:
                state[name] = state[name].float()
        return state

    return read
