"""Rehearses a load with meta tensors, to learn which tensors modules with their own loaders will accept.

Hooks may rename, fuse or drop keys, so names alone prove nothing about a subtree with hooks. A walk over meta tensors
made from headers runs every hook and reads no weight. The walk assigns tensors, so everything is restored by identity
afterwards, also after an error. In a load, hooks therefore run twice, the first time with meta tensors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from shardload.checkpoint.shard import CODES, torch_dtype
from shardload.errors import ShardloadError
from shardload.keymap import Derived
from shardload.loading.fault import (
    Fault,
    dtype_name,
    missing_fault,
    shape_mismatch_fault,
    unexpected_fault,
)
from shardload.loading.plan import is_recomputed, other_kind
from shardload.model.module_loaders import Snapshot, has_override, walk
from shardload.model.shell import modules_of
from shardload.tensor_ref import torch_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from shardload.loading.plan import Plan
    from shardload.model.module_loaders import WalkResult
    from shardload.model.module_tree import SelfLoading
    from shardload.model.shell import Shell

_EXTRA_STATE = "_extra_state"


def rehearse(
    plan: Plan, shell: Shell, roots: Sequence[SelfLoading], versions: Mapping[str, dict[str, Any]]
) -> list[str]:
    """Add the faults of self-loading subtrees to the plan; return notes on the subtrees that can't be rehearsed.

    The model is left exactly as it was.
    """
    unproven: list[str] = []
    for root in roots:
        entries = plan.handed[root.prefix]
        snapshot = Snapshot(root.module.modules())
        try:
            result = _walk_on_meta(root, entries, versions, _Watch(plan, shell))
        except ShardloadError:
            raise
        except KeyError as error:
            # The loader asks for a missing name, and would do so with real values too.
            plan.faults.append(failure(root, error))
        except Exception as error:  # noqa: BLE001 - a hook may raise anything when it looks at values
            plan.in_place |= _own_parameters(root)
            plan.own_results |= {key: ref.nbytes for key, ref in entries.items() if isinstance(ref, Derived)}
            unproven.append(
                f"{root.label}: {root.why} can't be rehearsed without values ({type(error).__name__}); "
                "the load itself shows whether it fits"
            )
        else:
            faults = faults_of(result, entries, shell, plan.computed)
            plan.faults += [fault for fault in faults if fault.key not in plan.made]
            plan.in_place -= set(result.missing)
            plan.forgiven += result.forgiven
        finally:
            snapshot.restore()
    return unproven


def _own_parameters(root: SelfLoading) -> set[str]:
    """Return the parameters of modules that override the loader: a rehearsal did not show whether it writes to them."""
    return {
        path + name
        for path, module in modules_of(root.module, root.prefix)
        if has_override(module)
        for name, parameter in module._parameters.items()
        if parameter is not None
    }


def failure(root: SelfLoading, error: Exception) -> Fault:
    """Return the fault of a subtree whose own loader raised an error."""
    key = root.prefix[:-1] or type(root.module).__name__
    return Fault("refused", key, note=f"{root.why} failed: {type(error).__name__}: {error}")


class _Watch:
    """Watches what each module does to its slots: it replaces a tensor, changes its kind of number, or leaves it."""

    def __init__(self, plan: Plan, shell: Shell) -> None:
        self._plan = plan
        self._slots = shell.slots
        self.handed: set[int] = set()

    def __call__(self, module: nn.Module, prefix: str) -> Callable[[], None]:
        before = {**module._parameters, **module._buffers}

        def leave() -> None:
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter is before.get(name):
                    if has_override(module):
                        self._plan.in_place.add(prefix + name)
                elif parameter is not None:
                    self._check_kind(prefix + name, parameter)
                    self._note_memory(prefix + name, parameter)
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer is not before.get(name):
                    self._note_memory(prefix + name, buffer)

        return leave

    def _note_memory(self, key: str, assigned: torch.Tensor) -> None:
        """Record a tensor that the module made itself: its storage is none of those that the module was handed."""
        if _storage(assigned) not in self.handed:
            self._plan.own_results[key] = assigned.nbytes

    def _check_kind(self, key: str, parameter: torch.Tensor) -> None:
        slot = self._slots.get(key)
        note = other_kind(slot.dtype, CODES.get(parameter.dtype, "")) if slot else None
        if slot and note:
            self._plan.faults.append(replace(missing_fault(slot), kind="refused", note=note))


def _walk_on_meta(
    root: SelfLoading, entries: dict[str, Any], versions: Mapping[str, dict[str, Any]], watch: _Watch
) -> WalkResult:
    state = {
        key: _on_meta(value) if isinstance(value, Derived) else value
        for key, value in entries.items()
        # set_extra_state would change the module's own objects, which can't be restored.
        if key.rpartition(".")[2] != _EXTRA_STATE
    }
    watch.handed = {_storage(value) for value in state.values() if isinstance(value, torch.Tensor)}
    with torch.no_grad():
        return walk(root.module, root.prefix, dict(state), versions, watch)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _on_meta(ref: Derived) -> torch.Tensor:
    return torch.empty(torch_shape(ref.dtype, ref.shape), dtype=torch_dtype(ref), device="meta")


def faults_of(
    result: WalkResult, entries: Mapping[str, Any], shell: Shell, computed: list[str]
) -> list[Fault]:
    """Return the result of a walk as faults; stored copies of computed tensors are added to `computed`."""
    faults: list[Fault] = []
    for key in dict.fromkeys(result.missing):
        if key in entries and key.rpartition(".")[2] == _EXTRA_STATE:
            continue  # the rehearsal left this entry out
        slot = shell.slots.get(key)
        faults.append(missing_fault(slot) if slot else Fault("missing", key))
    for key in dict.fromkeys(result.unexpected):
        value = entries.get(key)
        slot = shell.slots.get(key)
        if slot is not None and is_recomputed(slot):
            computed.append(key)
        elif isinstance(value, Derived):
            faults.append(unexpected_fault(key, value))
        else:
            faults.append(
                Fault("unexpected", key, note=None if value is None else f"a {type(value).__name__}")
            )
    faults += [_message_fault(message, entries, shell) for message in result.errors]
    return faults


def _message_fault(message: str, entries: Mapping[str, Any], shell: Shell) -> Fault:
    """Return the fault of a message: a shape mismatch for torch's "size mismatch for KEY: …", else a refusal."""
    key = message.removeprefix("size mismatch for ").split(":", 1)[0]
    slot = shell.slots.get(key)
    if message.startswith("size mismatch for ") and slot is not None:
        ref = entries.get(key)
        if isinstance(ref, Derived):
            return shape_mismatch_fault(slot, ref)
        return Fault("misshapen", key, model_shape=slot.shape, model_dtype=dtype_name(slot), note=message)
    return Fault("refused", key if slot else "", note=message)
