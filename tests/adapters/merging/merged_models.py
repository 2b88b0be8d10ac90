"""Models whose weights come from a checkpoint and are merged: their bits, and how each weight is restored."""

from __future__ import annotations

import torch

from shardload import from_pretrained
from tests.adapters.tiny import Tiny


def loaded(base, **options):
    return from_pretrained(base, model_class=lambda config: Tiny(torch.bfloat16), progress=False, **options)


def bits(model):
    """Every parameter and buffer of the base as bytes, with its identity."""
    found = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if ".lora_" not in name:
            found[name] = (id(tensor), tensor.dtype, tensor.detach().clone().view(torch.uint8).tolist())
    return found


def ways(model):
    return {weight.way for weight in vars(model)["_shardload_adapters"].merged.changed}
