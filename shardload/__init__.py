"""shardload: a sharded checkpoint loader and from_pretrained for PyTorch.

Names are imported when they are first used, so that `import shardload` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shardload._system.absent_numpy import without_numpy_warning
from shardload._system.gc_freeze import gc_frozen
from shardload._system.import_lock import IMPORTS
from shardload.transformers_shim import host as _host

if TYPE_CHECKING:
    from shardload._system.progress import Progress
    from shardload.adapters import (
        AdapterReport,
        active_adapters,
        adapter_batch,
        attach_lora,
        delete_adapter,
        disable_adapter,
        inspect_adapter,
        load_adapter,
        lora_state_dict,
        mark_only_lora_as_trainable,
        prepare_model_for_int8_training,
        prepare_model_for_kbit_training,
        save_adapter,
        set_adapter,
        swap_adapter,
        trainable_parameters,
    )
    from shardload.adapters.merging import MergeReport, merge, merge_to_disk, unmerge
    from shardload.checkpoint.checkpoint import Checkpoint, open_checkpoint
    from shardload.checkpoint.plain_weights import dequantised
    from shardload.compare.diff import Difference, diff
    from shardload.compare.verify import Verification, verify
    from shardload.diagnosis.examination import Examination
    from shardload.doctor import examine
    from shardload.errors import (
        AccessError,
        CorruptError,
        MemoryLimitError,
        MismatchError,
        NoInverseError,
        NoSpaceError,
        NotFoundError,
        RanksError,
        RemoteCodeError,
        ShardloadError,
        UnsafeError,
        UnsupportedError,
        UntrustedCodeError,
        UsageError,
    )
    from shardload.forecast import Forecast, plan_load
    from shardload.keymap import KeyMap
    from shardload.load import from_pretrained
    from shardload.loading.fill import check, fill
    from shardload.loading.provenance import report_of
    from shardload.loading.report import Report
    from shardload.model.shell import Shell, Slot, build_shell
    from shardload.placement.device import OnDevice
    from shardload.placement.device_hooks import remove_device_hooks
    from shardload.placement.on_devices import OnDevices
    from shardload.placement.quantised import Quantised
    from shardload.placement.quantised_by_torchao import QuantisedByTorchao
    from shardload.processor import load_processor
    from shardload.repo_class import load_config, resolve_class
    from shardload.saving import save
    from shardload.tensor_ref import TensorRef
    from shardload.tokenizer import load_tokenizer
    from shardload.transformers_shim.host import Host
    from shardload.writing.convert import convert

__version__ = "0.1.0"

_HOMES = {
    "adapters": (
        "AdapterReport",
        "active_adapters",
        "adapter_batch",
        "attach_lora",
        "delete_adapter",
        "disable_adapter",
        "inspect_adapter",
        "load_adapter",
        "lora_state_dict",
        "mark_only_lora_as_trainable",
        "prepare_model_for_int8_training",
        "prepare_model_for_kbit_training",
        "save_adapter",
        "set_adapter",
        "swap_adapter",
        "trainable_parameters",
    ),
    "adapters.merging": ("MergeReport", "merge", "merge_to_disk", "unmerge"),
    "checkpoint.checkpoint": ("Checkpoint", "open_checkpoint"),
    "checkpoint.plain_weights": ("dequantised",),
    "writing.convert": ("convert",),
    "compare.diff": ("Difference", "diff"),
    "errors": (
        "AccessError",
        "CorruptError",
        "MemoryLimitError",
        "MismatchError",
        "NoInverseError",
        "NoSpaceError",
        "NotFoundError",
        "RanksError",
        "RemoteCodeError",
        "ShardloadError",
        "UnsafeError",
        "UnsupportedError",
        "UntrustedCodeError",
        "UsageError",
    ),
    "diagnosis.examination": ("Examination",),
    "doctor": ("examine",),
    "loading.fill": ("check", "fill"),
    "forecast": ("Forecast", "plan_load"),
    "keymap": ("KeyMap",),
    "load": ("from_pretrained",),
    "_system.progress": ("Progress",),
    "loading.provenance": ("report_of",),
    "loading.report": ("Report",),
    "saving": ("save",),
    "model.shell": ("Shell", "Slot", "build_shell"),
    "placement.data_parallel": ("data_parallel",),
    "placement.device": ("OnDevice",),
    "placement.device_hooks": ("remove_device_hooks",),
    "placement.on_devices": ("OnDevices",),
    "placement.quantised": ("Quantised",),
    "placement.quantised_by_torchao": ("QuantisedByTorchao",),
    "tensor_ref": ("TensorRef",),
    "processor": ("load_processor",),
    "repo_class": ("load_config", "resolve_class"),
    "tokenizer": ("load_tokenizer",),
    "compare.verify": ("Verification", "verify"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AccessError",
    "AdapterReport",
    "Checkpoint",
    "CorruptError",
    "Difference",
    "Examination",
    "Forecast",
    "KeyMap",
    "MemoryLimitError",
    "MergeReport",
    "MismatchError",
    "NoInverseError",
    "NoSpaceError",
    "NotFoundError",
    "OnDevice",
    "OnDevices",
    "Progress",
    "Quantised",
    "QuantisedByTorchao",
    "RanksError",
    "RemoteCodeError",
    "Report",
    "ShardloadError",
    "Shell",
    "Slot",
    "TensorRef",
    "UnsafeError",
    "UnsupportedError",
    "UntrustedCodeError",
    "UsageError",
    "Verification",
    "active_adapters",
    "adapter_batch",
    "attach_lora",
    "build_shell",
    "check",
    "convert",
    "data_parallel",
    "delete_adapter",
    "dequantised",
    "diff",
    "disable_adapter",
    "examine",
    "fill",
    "from_pretrained",
    "inspect_adapter",
    "load_adapter",
    "load_config",
    "load_processor",
    "load_tokenizer",
    "lora_state_dict",
    "mark_only_lora_as_trainable",
    "merge",
    "merge_to_disk",
    "open_checkpoint",
    "plan_load",
    "prepare_model_for_int8_training",
    "prepare_model_for_kbit_training",
    "remove_device_hooks",
    "report_of",
    "resolve_class",
    "save",
    "save_adapter",
    "set_adapter",
    "swap_adapter",
    "trainable_parameters",
    "unmerge",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'shardload' has no attribute {name!r}")
    globals()[name] = value = _imported(name)
    return value


@gc_frozen  # one full collection among torch's million objects is 0.1 s, and finds nothing
@without_numpy_warning()
def _imported(name: str) -> Any:
    with IMPORTS.lock:
        return getattr(import_module(f"shardload.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _host_of_the_shim() -> Host:
    save = import_module("shardload.saving").save
    return import_module("shardload.remote_code.shim_host").host_with(save)  # type: ignore[no-any-return]


# Here, because every import of one of the shim's modules, unpickling included, imports this package first.
_host.hand_in(_host_of_the_shim)
