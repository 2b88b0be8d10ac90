"""Adapters: LoRA weights attached to a model in place, every tensor of the file consumed or an error."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shardload import saving
from shardload.adapters.adapter import AdapterFile, AdapterFormat, listing
from shardload.adapters.adapter_report import AdapterFault, AdapterReport, shown
from shardload.adapters.attach import (
    activate,
    active_adapters,
    attach_values,
    check_name,
    check_owner,
    detach,
)
from shardload.adapters.base_state import without_adapters
from shardload.adapters.foreign import foreign_style
from shardload.adapters.fresh import attach_lora
from shardload.adapters.judgement import judge, read_judged
from shardload.adapters.peft import Peft
from shardload.adapters.selection import adapter_batch, delete_adapter, disable_adapter, set_adapter
from shardload.adapters.source import open_adapter
from shardload.adapters.trainable import TrainableParameters, trainable_parameters
from shardload.errors import UnsupportedError
from shardload.gc_pause import gc_paused

if TYPE_CHECKING:
    import os

    from torch import nn

__all__ = [
    "FORMATS",
    "AdapterFault",
    "AdapterFile",
    "AdapterFormat",
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
    "load_adapter",
    "open_adapter",
    "set_adapter",
    "trainable_parameters",
]

saving.base_states.append(without_adapters)

FORMATS: tuple[AdapterFormat, ...] = (Peft(),)
"""All adapter file formats, in the order in which they are tried."""


def format_of(file: AdapterFile) -> AdapterFormat:
    """Return the format of an adapter file, told by its keys. Raises UnsupportedError for any other."""
    for known in FORMATS:
        if known.matches(file):
            return known
    keys = file.checkpoint.tensors
    style = foreign_style(keys)
    if style is not None:
        tool, key = style
        raise UnsupportedError(
            f"the adapter is in the format of {tool}, which this version does not read",
            where=f"{file.label}: {shown(key)}",
            cure="convert it to PEFT's format (adapter_model.safetensors with adapter_config.json)",
        )
    raise UnsupportedError(
        "the file is no adapter of a known format: no key ends in lora_A.weight",
        where=f"{file.label}: {listing(list(keys), 3)}",
        cure="pass a LoRA adapter in PEFT's format; for a whole checkpoint use from_pretrained or fill",
    )


def load_adapter(
    model: nn.Module,
    where: str | os.PathLike[str],
    *,
    name: str = "default",
    strict: bool = True,
    trainable: bool = True,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
    allow_links: bool = False,
) -> AdapterReport:
    """Attach a LoRA adapter to a model, in place, and load its weights; every tensor is consumed or an error.

    `where` is a folder, a weight file with adapter_config.json beside it, or `org/name[@revision]` on the Hub.
    Module paths and the base's names in `state_dict()` stay as they are; the adapter's parameters are added as
    `<layer>.lora_A.<name>.weight` and `<layer>.lora_B.<name>.weight`, in the stored dtype (wider where the base
    layer's is), on the layer's device. The base is frozen; with `trainable` gradients flow to the adapter alone.
    The first adapter becomes the active one; a further one, under another name, is attached and not active.
    With `strict=False` tensors without a place, and missing ones, are warnings in the report.

    Raises MismatchError (with `.report`) when file and model disagree, UnsupportedError for variants and formats
    that are known and not done, CorruptError for NaN, Inf, empty tensors or a broken config: all faults at once,
    and the model is as it was.
    """
    start = time.perf_counter()
    check_name(model, name)
    file = open_adapter(
        where,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        subfolder=subfolder,
        allow_links=allow_links,
    )
    with gc_paused():
        report = _attach(model, file, name, strict=strict, trainable=trainable)
    report.seconds = time.perf_counter() - start
    return report


def _attach(
    model: nn.Module, file: AdapterFile, name: str, *, strict: bool, trainable: bool
) -> AdapterReport:
    """Judge by the headers, then by the values, then attach."""
    content = format_of(file).read(file, strict=strict)
    report, match = judge(model, file, content, name, strict=strict)
    report.trainable = trainable
    check_owner(model, match)
    values = read_judged(file, match, report)
    attach_values(model, name, values, trainable=trainable).report = report
    report.active = name in active_adapters(model)
    return report
