"""swap_adapter: gives an attached adapter other weights."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shardload.adapters.adapter import ReadOptions, listing
from shardload.adapters.attach import active_adapters, check_owner, record_of, replace_adapter
from shardload.adapters.match import judge
from shardload.adapters.replaced import replace_base
from shardload.adapters.source import open_adapter, read_content
from shardload.adapters.switch import LOCK
from shardload.adapters.values import checked_dtype, dtype_for_use, read_values
from shardload.errors import UsageError
from shardload.keywords import entry_point, place_of
from shardload.model.wrapper_tensors import refuse_sharded

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
def swap_adapter(
    model: nn.Module,
    name: str,
    where: WhereLike,
    *,
    format: str = "auto",  # noqa: A002 - as in load_adapter
    alpha: float | None = None,
    strict: bool = True,
    key_map: KeyMap | Mapping[str, str | None] | None = None,
    dtype: str | torch.dtype = "auto",
    enable_lora: Sequence[bool] | None = None,
    **keywords: Unpack[SourceKeywords],
) -> AdapterReport:
    """Give an attached adapter the weights and settings of another file, under the same name.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> report = shardload.attach_lora(model, r=2, targets=["0"])
        >>> files = shardload.save_adapter(model, "newer")
        >>> report = shardload.swap_adapter(model, "default", "newer")
        >>> shardload.active_adapters(model)
        {'default': 1.0}

    It stays as active, as weighted and as trainable as it is; alpha, patterns, ranks, layers and variants are the new
    file's. Layers that both have keep their class and their hooks. The keywords are load_adapter's. A forward pass
    that runs in another thread meanwhile may meet both; parameters are new objects, so an optimizer has to be made
    again.

    Raises what load_adapter raises, UsageError for a name that is not attached, and while a `with` block that is open
    runs with it: then the adapter is as it was.
    """
    start = time.perf_counter()
    options, wanted = ReadOptions.of(alpha, enable_lora, strict=strict), checked_dtype(dtype)
    with LOCK:
        adapters = record_of(model)
        refuse_sharded(model, "swapping an adapter")
        old = adapters.attached.get(name)
        if old is None:
            raise UsageError(
                f"no adapter called {name!r} is attached",
                where=f"attached: {listing(list(adapters.attached))}",
            )
        if any(name in choice.weights for choice in adapters.switch.live):
            raise UsageError(
                f"a `with` block that is open runs with the adapter {name!r}", cure="leave the block first"
            )
        file = open_adapter(place_of(where, keywords))
        content = read_content(file, format=format, options=options, key_map=key_map)
        replacing = adapters.replacing
        # The new file is judged by the base's own tensors, not by those that the old one replaces them with.
        replace_base(adapters, tuple(other for other in replacing if other != name))
        try:
            report, match = judge(model, file, content, name, strict=strict)
            check_owner(model, match)
            values = read_values(file, match, report, dtype=dtype_for_use(wanted, trains=old.trainable))
            new = replace_adapter(model, old, values)
        except BaseException:
            replace_base(adapters, replacing)
            raise
        new.report, new.config = report, file.config if content.format.startswith("PEFT") else None
    report.trainable, report.active = new.trainable, name in active_adapters(model)
    report.seconds = time.perf_counter() - start
    return report
