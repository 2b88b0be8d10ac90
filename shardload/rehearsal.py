"""The rehearsal: a walk with meta tensors that tells what modules with their own loaders will accept.

Hooks may rename, fuse or drop keys, so names alone prove nothing for their subtrees. The same walk over tensors
made from headers runs every hook and reads no byte. It assigns, so everything is put back by identity whatever
happens. Hooks therefore run twice in a load, once with meta tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from shardload.errors import ShardloadError
from shardload.plan import Fault, dtype_name, misshapen_fault, missing_fault, unexpected_fault
from shardload.shard import torch_dtype
from shardload.tensor_ref import TensorRef
from shardload.walker import Snapshot, walk

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from shardload.plan import Plan
    from shardload.shell import Shell
    from shardload.walker import Root, WalkResult

_EXTRA_STATE = "_extra_state"


def rehearse(
    plan: Plan, shell: Shell, roots: tuple[Root, ...], versions: Mapping[str, dict[str, Any]]
) -> list[str]:
    """Add the faults of subtrees with their own loaders to the plan; return lines about what couldn't be rehearsed.

    The model is left exactly as it was.
    """
    unproven: list[str] = []
    for root in roots:
        entries = plan.handed[root.prefix]
        snapshot = Snapshot(root.module.modules())
        try:
            result = _walk_on_meta(root, entries, versions)
        except ShardloadError:
            raise
        except KeyError as error:
            plan.faults.append(failure(root, error))  # it asks for a name that is not there, values or not
        except Exception as error:  # noqa: BLE001 - a hook may raise anything when it looks at values
            where = root.prefix[:-1] or "the model itself"
            unproven.append(
                f"{where}: {root.why} can't be rehearsed without values ({type(error).__name__}); "
                "it is judged at the load"
            )
        else:
            plan.faults += faults_of(result, entries, shell, plan.computed)
            plan.forgiven += result.forgiven
        finally:
            snapshot.restore()
    return unproven


def failure(root: Root, error: Exception) -> Fault:
    """Return the fault of a subtree whose own loader raised something."""
    key = root.prefix[:-1] or type(root.module).__name__
    return Fault("refused", key, note=f"{root.why} failed: {type(error).__name__}: {error}")


def _walk_on_meta(root: Root, entries: dict[str, Any], versions: Mapping[str, dict[str, Any]]) -> WalkResult:
    state = {
        key: _on_meta(value) if isinstance(value, TensorRef) else value
        for key, value in entries.items()
        # set_extra_state would change the module's own objects, which can't be put back.
        if key.rpartition(".")[2] != _EXTRA_STATE
    }
    with torch.no_grad():
        return walk(root.module, root.prefix, state, versions, _no_visit)


def _no_visit(_module: nn.Module, _prefix: str) -> None:
    return None


def _on_meta(ref: TensorRef) -> torch.Tensor:
    return torch.empty(ref.shape, dtype=torch_dtype(ref), device="meta")


def faults_of(
    result: WalkResult, entries: Mapping[str, Any], shell: Shell, computed: list[str]
) -> list[Fault]:
    """Turn what a walk reported into faults; stored copies of computed tensors go to `computed`."""
    faults: list[Fault] = []
    for key in dict.fromkeys(result.missing):
        if key in entries and key.rpartition(".")[2] == _EXTRA_STATE:
            continue  # it was left out of the rehearsal
        slot = shell.slots.get(key)
        faults.append(missing_fault(slot) if slot else Fault("missing", key))
    for key in dict.fromkeys(result.unexpected):
        value = entries.get(key)
        slot = shell.slots.get(key)
        if slot is not None and slot.kind == "computed":
            computed.append(key)
            continue
        if isinstance(value, TensorRef):
            faults.append(unexpected_fault(key, value))
        else:
            faults.append(
                Fault("unexpected", key, note=None if value is None else f"a {type(value).__name__}")
            )
    faults += [_message_fault(message, entries, shell) for message in result.errors]
    return faults


def _message_fault(message: str, entries: Mapping[str, Any], shell: Shell) -> Fault:
    """Read torch's "size mismatch for KEY: …"; any other message is a refusal in the module's own words."""
    key = message.removeprefix("size mismatch for ").split(":", 1)[0]
    slot = shell.slots.get(key)
    if message.startswith("size mismatch for ") and slot is not None:
        ref = entries.get(key)
        if isinstance(ref, TensorRef):
            return misshapen_fault(slot, ref)
        return Fault("misshapen", key, model_shape=slot.shape, model_dtype=dtype_name(slot), note=message)
    return Fault("refused", key if slot else "", note=message)
