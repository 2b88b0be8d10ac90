"""The file formats of adapters, and which of those besides PEFT's a file is in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.adapters.adapter import listing
from shardload.adapters.adapter_report import shown
from shardload.adapters.formats.foreign import cure_of, foreign_style
from shardload.adapters.formats.loralib import Loralib
from shardload.adapters.formats.minimind import MiniMind
from shardload.adapters.formats.mlx import MlxLm
from shardload.adapters.formats.peft import Peft
from shardload.adapters.formats.torchtune import Torchtune
from shardload.adapters.settings import refuse_other_type
from shardload.errors import UnsupportedError, UsageError, Wording, keyword

if TYPE_CHECKING:
    from shardload.adapters.adapter import AdapterFile, AdapterFormat

__all__ = ["FORMATS", "other_format"]

FORMATS: dict[str, AdapterFormat] = {
    "peft": Peft(),
    "minimind": MiniMind(),
    "torchtune": Torchtune(),
    "mlx-lm": MlxLm(),
    "loralib": Loralib(),
}
"""All adapter file formats by the names that `format=` takes, in the order in which they are tried."""


def other_format(file: AdapterFile, wanted: str) -> AdapterFormat:
    """Return the format of a file that is not PEFT's, by its keys, or the one that is wanted by name.

    Raises UnsupportedError for an unknown format, UsageError when the file is not in the wanted one.
    """
    if wanted not in {"auto", *FORMATS}:
        raise UsageError(
            Wording("{format} is none of auto, {0}", ", ".join(FORMATS), format=wanted),
            where=keyword("format"),
        )
    if wanted == "auto" and file.config is not None:
        refuse_other_type(file.config, file.config_label)
    keys = file.checkpoint.tensors
    matching = [known for known in FORMATS.values() if known.matches(file)]
    if wanted != "auto":
        if FORMATS[wanted] in matching:
            return FORMATS[wanted]
        is_of = f"its keys are those of {matching[0].name}" if matching else "its keys fit none"
        raise UsageError(
            f"the file is not in the format {wanted}: {is_of}",
            where=f"{file.label}: {listing(list(keys), 3)}",
            cure=Wording("leave {format}: the keys tell the format", format="auto"),
        )
    style = foreign_style(keys)
    if matching and style is None:
        return matching[0]
    if style is not None:
        tool, key = style
        raise UnsupportedError(
            f"the adapter is in the format of {tool}, which this version does not read",
            where=f"{file.label}: {shown(key)}",
            cure=cure_of(tool, file.label),
        )
    raise UnsupportedError(
        "the file is no adapter of a known format: no key ends in lora_A.weight",
        where=f"{file.label}: {listing(list(keys), 3)}",
        cure="pass a LoRA adapter in PEFT's format; for a whole checkpoint use from_pretrained or fill",
    )
