"""Tied parameters: one stored copy fills every name; two stored copies must be equal."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

from shardload.errors import Cures, MismatchError, Wording
from shardload.keymap import Drop
from shardload.model.shell import modules_of
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.keymap import Derived, Rule
    from shardload.loading.plan import Plan
    from shardload.model.shell import Shell


def compare_stored_copies(
    shell: Shell,
    plan: Plan,
    checkpoint: Checkpoint,
    undo: list[Callable[[], None]],
    rules: Sequence[Rule] = (),
    *,
    copy: bool = False,
) -> list[str]:
    """Raise MismatchError when a tied parameter is stored twice with different values. Nothing is assigned before.

    Classes of transformers are untied instead, where transformers does it; notes say so, and `undo` takes a function
    that reverts it. Two names of one span of a file (a pickle that kept the tie) are equal without a read. `rules` are
    those of the caller's key map. With `copy=True` no file is mapped.
    """
    stored = dict(plan.tensors)
    notes: list[str] = []

    def equal(one: str, other: str) -> bool:
        return _equal(stored[one], stored[other], checkpoint, copy)

    for group in shell.ties:
        copies = [name for name in group if name in stored]
        apart = next((pair for pair in pairwise(copies) if not equal(*pair)), None)
        if apart is None:
            continue
        from shardload.transformers_classes.untied import untie

        untied = untie(shell, group, plan.direct, equal, undo)
        if not untied:
            files = ", ".join(stored[name].shard for name in apart)
            drop = _without(apart[1], stored[apart[1]], rules)
            raise _differ(*apart, "differ in the checkpoint", shell, drop, f"{files} of {checkpoint.label}")
        notes += untied
    return notes


def _differ(
    one: str, other: str, how: str, shell: Shell, drop: str, where: str | None = None
) -> MismatchError:
    says = getattr(getattr(shell.model, "config", None), "tie_word_embeddings", False)
    untie = "set tie_word_embeddings to false in config.json" if says is True else "untie them in the class"
    return MismatchError(
        f"{one} and {other} are one parameter in the model, and {how}", where=where, cure=Cures(untie, drop)
    )


def _without(name: str, tensor: Derived, rules: Sequence[Rule]) -> str:
    """Return how to load without a tensor: the caller's key map, and a rule more."""
    from shardload.diagnosis.rule_text import as_names  # for the error alone

    key = name if rules or not isinstance(tensor, TensorRef) else tensor.name
    names = as_names([*rules, Drop(key)])
    if names is None:
        return f"drop one: end the key map with a rule that drops {key}"
    return Wording("drop one: {key_map}", key_map=names)


def _equal(first: Derived, second: Derived, checkpoint: Checkpoint, copy: bool) -> bool:
    if _place_in_file(first) == _place_in_file(second):
        return True
    one, other = (checkpoint.read_derived(tensor, copy=copy) for tensor in (first, second))
    return same_bytes(one, other)


def _place_in_file(tensor: Derived) -> object:
    """Return an object that is equal for two tensors if they are the same bytes of the same file."""
    return (tensor.shard, tensor.span, tensor.strides) if isinstance(tensor, TensorRef) else tensor


def same_bytes(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are equal bit for bit, also where they hold NaN."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return torch.equal(as_bytes(first), as_bytes(second))


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor, in C order; a single element may have any stride, which `view` would keep."""
    return tensor.detach().contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def retie(shell: Shell, filled: set[str]) -> None:
    """Assign the loaded tensor of each tied group to all names of the group."""
    modules = dict(modules_of(shell.model))
    for group in shell.ties:
        loaded = next((name for name in group if name in filled), None)
        if loaded is None:
            continue
        places = [_place(modules, name) for name in group]
        _refuse_different(
            shell, [(name, _get(*place)) for name, place in zip(group, places, strict=True) if name in filled]
        )
        tensor = _get(*places[group.index(loaded)])
        old = next((p for module, leaf in places if (p := module._parameters.get(leaf)) is not None), None)
        if old is not None and not isinstance(tensor, nn.Parameter):
            # The loaded name is a buffer that is also a parameter.
            tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
        for module, leaf in places:
            if leaf in module._buffers:
                module._buffers[leaf] = tensor
            elif module._parameters.get(leaf) is not tensor:
                setattr(module, leaf, tensor)


def _refuse_different(shell: Shell, loaded: list[tuple[str, torch.Tensor]]) -> None:
    """Raise MismatchError if load hooks gave the names of one parameter different values."""
    for (first_name, first), (second_name, second) in pairwise(loaded):
        if first is not second and not same_bytes(first, second):
            drop = Wording("drop one of them by {key_map}", key_map=...)
            raise _differ(first_name, second_name, "were given different values", shell, drop)


def _place(modules: dict[str, nn.Module], name: str) -> tuple[nn.Module, str]:
    prefix, _, leaf = name.rpartition(".")
    return modules[f"{prefix}." if prefix else ""], leaf


def _get(module: nn.Module, leaf: str) -> torch.Tensor:
    found: torch.Tensor | None = module._parameters.get(leaf)
    if found is None:
        found = module._buffers[leaf]
    assert found is not None
    return found
