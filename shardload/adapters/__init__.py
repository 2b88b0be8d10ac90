"""Adapters: LoRA weights attached to a model in place, every tensor of the file consumed or an error."""

from __future__ import annotations

from shardload.adapters.adapter import AdapterFile, AdapterFormat
from shardload.adapters.adapter_folder import save_adapter
from shardload.adapters.adapter_report import AdapterFault, AdapterReport
from shardload.adapters.attach import activate, active_adapters, detach
from shardload.adapters.attach_lora import attach_lora
from shardload.adapters.formats import FORMATS
from shardload.adapters.inspection import AdapterInspection, inspect_adapter
from shardload.adapters.kbit_training import (
    prepare_model_for_int8_training,
    prepare_model_for_kbit_training,
)
from shardload.adapters.load_adapter import load_adapter
from shardload.adapters.selection import adapter_batch, delete_adapter, disable_adapter, set_adapter
from shardload.adapters.source import format_of, open_adapter
from shardload.adapters.swap_adapter import swap_adapter
from shardload.adapters.trainable import (
    TrainableParameters,
    lora_state_dict,
    mark_only_lora_as_trainable,
    trainable_parameters,
)

__all__ = [
    "FORMATS",
    "AdapterFault",
    "AdapterFile",
    "AdapterFormat",
    "AdapterInspection",
    "AdapterReport",
    "TrainableParameters",
    "activate",
    "active_adapters",
    "adapter_batch",
    "attach_lora",
    "delete_adapter",
    "detach",
    "disable_adapter",
    "format_of",
    "inspect_adapter",
    "load_adapter",
    "lora_state_dict",
    "mark_only_lora_as_trainable",
    "open_adapter",
    "prepare_model_for_int8_training",
    "prepare_model_for_kbit_training",
    "save_adapter",
    "set_adapter",
    "swap_adapter",
    "trainable_parameters",
]
