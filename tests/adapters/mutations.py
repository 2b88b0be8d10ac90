"""What can be wrong with one tensor of an adapter file: each changes the tensor `key` in place."""

from __future__ import annotations

import torch

from tests.adapters.tiny import PREFIX


def drop(tensors, key):
    del tensors[key]


def rename_end(tensors, key):
    tensors[key + "s"] = tensors.pop(key)


def double_shape(tensors, key):
    tensors[key] = torch.cat([tensors[key], tensors[key]])


def rename_module(tensors, key):
    tensors[key.replace("layers.", "blocks.").replace("score", "scores")] = tensors.pop(key)


def rename_adapter(tensors, key):
    tensors[key.replace(".lora_B.", ".lora_B.other.").replace(".lora_A.", ".lora_A.other.")] = tensors.pop(
        key
    )


def lose_prefix(tensors, key):
    tensors[key.removeprefix(PREFIX)] = tensors.pop(key)


def double_key(tensors, key):
    tensors[key.replace(PREFIX, PREFIX + "_orig_mod.")] = tensors[key].clone()


def transpose(tensors, key):
    value = tensors[key]
    tensors[key] = value.T.contiguous() if value.dim() == 2 else value[None]


def put_nan(tensors, key):
    tensors[key].view(-1)[-1] = float("nan")


def put_inf(tensors, key):
    tensors[key].view(-1)[0] = float("-inf")


def empty(tensors, key):
    tensors[key] = torch.empty(0)


def integers(tensors, key):
    tensors[key] = tensors[key].long()
