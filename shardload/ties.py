"""Tied parameters: one stored copy fills every name; two stored copies must be equal."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from shardload.errors import MismatchError
from shardload.shell import modules_of

if TYPE_CHECKING:
    from torch import nn

    from shardload.checkpoint import Checkpoint
    from shardload.plan import Plan
    from shardload.shell import Shell
    from shardload.tensor_ref import TensorRef


def compare_stored_copies(shell: Shell, plan: Plan, checkpoint: Checkpoint) -> None:
    """Raise MismatchError when a tied parameter is stored twice with different values; before anything is assigned.

    Copies that are one span of one file (a pickle that kept the tie) are not read.
    """
    if not shell.ties:
        return
    stored = dict(plan.tensors)
    for group in shell.ties:
        copies = [(name, stored[name]) for name in group if name in stored]
        for (first_name, first), (second_name, second) in pairwise(copies):
            if not _equal(first, second, checkpoint):
                raise MismatchError(
                    f"{first_name} and {second_name} are one parameter in the model, and differ in the checkpoint",
                    where=f"{first.shard}, {second.shard} of {checkpoint.label}",
                    cure="untie them in the config (tie_word_embeddings=false), "
                    f"or drop one: key_map={{{second.name!r}: None}}",
                )


def _equal(first: TensorRef, second: TensorRef, checkpoint: Checkpoint) -> bool:
    if (first.shard, first.span, first.strides) == (second.shard, second.span, second.strides):
        return True
    return first.dtype == second.dtype and torch.equal(
        checkpoint.read(first.name), checkpoint.read(second.name)
    )


def retie(shell: Shell, filled: set[str]) -> None:
    """Let every name of a tied group hold the one parameter that was loaded."""
    if not shell.ties:
        return
    modules = dict(modules_of(shell.model))
    for group in shell.ties:
        loaded = next((name for name in group if name in filled), None)
        if loaded is None:
            continue
        parameter = _owner(modules, loaded)._parameters[loaded.rpartition(".")[2]]
        for name in group:
            if name != loaded:
                setattr(_owner(modules, name), name.rpartition(".")[2], parameter)


def _owner(modules: dict[str, nn.Module], name: str) -> nn.Module:
    prefix = name.rpartition(".")[0]
    return modules[f"{prefix}." if prefix else ""]
