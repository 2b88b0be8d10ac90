"""load_adapter: attaches an adapter file to a loaded model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shardload.adapters.adapter import ReadOptions
from shardload.adapters.attach import attach_values, check_name, check_owner
from shardload.adapters.match import judge
from shardload.adapters.merging.merge_on_eval import follow_training
from shardload.adapters.source import open_adapter, read_content
from shardload.adapters.values import checked_dtype, dtype_for_use, read_values
from shardload.keywords import entry_point, place_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn
    from typing_extensions import Unpack

    from shardload.adapters.adapter_report import AdapterReport
    from shardload.keymap import KeyMap
    from shardload.keywords import SourceKeywords
    from shardload.where import WhereLike


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
    dtype: str | torch.dtype = "auto",
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
    stored dtype, wider where the base layer's is; "auto" the same, and float32 where it is to be trained: small steps
    are lost in half precision; "base" the base layer's; or a floating dtype. The base is frozen; with `trainable`
    gradients flow to the adapter alone. The first adapter becomes the active one; a further
    one, under another name, is attached and not active. With `strict=False` tensors without a place, and missing
    ones, are warnings in the report. With `merge_on_eval` the model's eval() merges what is active and train() takes it
    back, bit for bit; without it neither touches the base.

    Raises MismatchError (with `.report`) when file and model disagree, UnsupportedError for variants and formats
    that are known and not done, CorruptError for NaN, Inf, empty tensors or a broken config: all faults at once,
    and the model is as it was.
    """
    start = time.perf_counter()
    check_name(model, name)
    options = ReadOptions.of(alpha, enable_lora, strict=strict)
    wanted = dtype_for_use(checked_dtype(dtype), trains=trainable)
    file = open_adapter(place_of(where, keywords))
    content = read_content(file, format=format, options=options, key_map=key_map)
    report, match = judge(model, file, content, name, strict=strict)
    report.trainable = trainable
    check_owner(model, match)
    values = read_values(file, match, report, dtype=wanted)
    attach_values(model, report, values, file.config if content.format.startswith("PEFT") else None)
    if merge_on_eval:
        follow_training(model)
    report.seconds = time.perf_counter() - start
    return report
