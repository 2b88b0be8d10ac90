"""accelerate: an empty model, then load_checkpoint_and_dispatch to the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

LABEL = "accelerate `load_checkpoint_and_dispatch`"


def prepare(job: dict[str, Any]) -> Callable[[], nn.Module]:
    import torch
    from accelerate import init_empty_weights, load_checkpoint_and_dispatch
    from transformers import LlamaConfig, LlamaForCausalLM

    def load() -> nn.Module:
        config = LlamaConfig.from_pretrained(job["folder"])
        dtype = torch.bfloat16 if job["dtype"] == "auto" else torch.float32
        torch.set_default_dtype(dtype)
        with init_empty_weights():
            model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
        wanted = None if job["dtype"] == "auto" else dtype
        return load_checkpoint_and_dispatch(model, job["folder"], device_map={"": "cpu"}, dtype=wanted)

    return load
