"""Adapters: LoRA weights attached to a model in place, every tensor of the file consumed or an error."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardload._system.gc_pause import gc_paused
from shardload.adapters.adapter import AdapterFile, AdapterFormat
from shardload.adapters.adapter_folder import save_adapter
from shardload.adapters.adapter_report import AdapterFault, AdapterReport
from shardload.adapters.attach import activate, attach_values, check_owner, detach
from shardload.adapters.attached import active_adapters, check_name
from shardload.adapters.base_state import without_adapters
from shardload.adapters.formats import FORMATS, format_of
from shardload.adapters.fresh import attach_lora
from shardload.adapters.hot_swap import swap_adapter
from shardload.adapters.inspection import AdapterInspection, inspect_adapter
from shardload.adapters.judgement import judge, read_judged
from shardload.adapters.merging.on_eval import follow_training
from shardload.adapters.reading import checked_options, read_content
from shardload.adapters.selection import adapter_batch, delete_adapter, disable_adapter, set_adapter
from shardload.adapters.source import open_adapter
from shardload.adapters.trainable import (
    TrainableParameters,
    lora_state_dict,
    mark_only_lora_as_trainable,
    trainable_parameters,
)
from shardload.adapters.values import checked_dtype
from shardload.keywords import entry_point
from shardload.where import Where
from shardload.writing import save as saving

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn
    from typing_extensions import Unpack

    from shardload.adapters.adapter import AdapterContent
    from shardload.keymap import KeyMap
    from shardload.keywords import SourceKeywords
    from shardload.where import WhereLike

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
    "save_adapter",
    "set_adapter",
    "swap_adapter",
    "trainable_parameters",
]

saving.base_states.append(without_adapters)


@entry_point
def load_adapter(
    model: nn.Module,
    where: WhereLike,
    *,
    name: str = "default",
    format: str = "auto",  # noqa: A002 - as in other readers of files
    alpha: float | None = None,
    strict: bool = True,
    key_map: KeyMap | Mapping[str, str | None] | None = None,
    dtype: str | torch.dtype = "file",
    trainable: bool = False,
    enable_lora: Sequence[bool] | None = None,
    merge_on_eval: bool = False,
    **keywords: Unpack[SourceKeywords],
) -> AdapterReport:
    """Attach a LoRA adapter to a model, in place, and load its weights; every tensor is consumed or an error.

        >>> import torch, shardload
        >>> model, trained = (torch.nn.Sequential(torch.nn.Linear(4, 2)) for _ in range(2))
        >>> state = trained.load_state_dict(model.state_dict())
        >>> fresh = shardload.attach_lora(trained, r=2, targets=["0"])
        >>> files = shardload.save_adapter(trained, "lora")
        >>> report = shardload.load_adapter(model, "lora")
        >>> report.modules, report.ranks, report.active
        (1, {2: 1}, True)

    `where` is a folder, a weight file with its adapter_config.json beside it, or `org/name[@revision]` on the Hub.
    `format` is told by the keys ("peft", "loralib", "minimind", "mlx-lm", "torchtune" insist on one). `alpha` is
    lora_alpha for files that do not hold it (loralib, torchtune), and `enable_lora` the parts that are on in a
    MergedLinear of loralib; both count before a config. `key_map` renames the modules of the file to the model's.

    Module paths and the base's names in `state_dict()` stay as they are; the adapter's parameters are added as
    `<layer>.lora_A.<name>.weight` and `<layer>.lora_B.<name>.weight`, on the layer's device. `dtype`: "file" is the
    stored dtype, wider where the base layer's is; "base" the base layer's; or a floating torch dtype. The base is
    frozen; with `trainable` gradients flow to the adapter alone. The first adapter becomes the active one; a further
    one, under another name, is attached and not active. With `strict=False` tensors without a place, and missing
    ones, are warnings in the report. With `merge_on_eval` the model's eval() merges what is active and train() takes it
    back, bit for bit; without it neither touches the base.

    Raises MismatchError (with `.report`) when file and model disagree, UnsupportedError for variants and formats
    that are known and not done, CorruptError for NaN, Inf, empty tensors or a broken config: all faults at once,
    and the model is as it was.
    """
    start = time.perf_counter()
    check_name(model, name)
    options = checked_options(alpha, enable_lora, strict=strict)
    wanted = checked_dtype(dtype)
    file = open_adapter(Where.of(where, keywords))
    with gc_paused():
        content = read_content(file, format=format, options=options, key_map=key_map)
        report = _attach(model, file, content, name, _Wishes(strict, trainable, wanted))
    if merge_on_eval:
        follow_training(model)
    report.seconds = time.perf_counter() - start
    return report


@dataclass(frozen=True)
class _Wishes:
    """What the caller of `load_adapter` wants beside the content of the file."""

    strict: bool
    trainable: bool
    dtype: torch.dtype | str


def _attach(
    model: nn.Module, file: AdapterFile, content: AdapterContent, name: str, wishes: _Wishes
) -> AdapterReport:
    """Judge by the headers, then by the values, then attach."""
    report, match = judge(model, file, content, name, strict=wishes.strict)
    report.trainable = wishes.trainable
    check_owner(model, match)
    values = read_judged(file, match, report, dtype=wishes.dtype)
    attached = attach_values(model, name, values, trainable=wishes.trainable)
    attached.report = report
    attached.config = file.config if content.format.startswith("PEFT") else None
    report.active = name in active_adapters(model)
    return report
