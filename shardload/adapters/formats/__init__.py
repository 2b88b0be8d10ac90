"""The file formats of adapters; which of them a file is in, and what it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.adapters.adapter import ReadOptions, listing
from shardload.adapters.adapter_report import shown
from shardload.adapters.formats.foreign import foreign_style
from shardload.adapters.formats.loralib import Loralib
from shardload.adapters.formats.minimind import MiniMind
from shardload.adapters.formats.mlx import MlxLm
from shardload.adapters.formats.peft import Peft
from shardload.adapters.formats.torchtune import Torchtune
from shardload.adapters.renaming import renamed
from shardload.errors import UnsupportedError, UsageError, Wording, keyword

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.adapters.adapter import AdapterContent, AdapterFile, AdapterFormat
    from shardload.keymap import KeyMap

__all__ = ["FORMATS", "format_of", "read_content"]

FORMATS: dict[str, AdapterFormat] = {
    "peft": Peft(),
    "minimind": MiniMind(),
    "torchtune": Torchtune(),
    "mlx-lm": MlxLm(),
    "loralib": Loralib(),
}
"""All adapter file formats by the names that `format=` takes, in the order in which they are tried."""


def read_content(
    file: AdapterFile,
    *,
    format: str = "auto",  # noqa: A002 - the name in the public call
    options: ReadOptions | None = None,
    key_map: KeyMap | Mapping[str, str | None] | None = None,
) -> AdapterContent:
    """Return what an adapter file holds, from its headers and its config; no weight is read.

    `key_map` renames the modules of the file to the model's. Raises what `format_of` and `AdapterFormat.read` raise.
    """
    content = format_of(file, format).read(file, options or ReadOptions())
    return content if key_map is None else renamed(content, key_map)


def format_of(file: AdapterFile, wanted: str = "auto") -> AdapterFormat:
    """Return the format that an adapter file's keys show, or the one that is wanted by name.

    Raises UnsupportedError for an unknown format, UsageError when the file is not in the wanted one.
    """
    if wanted not in {"auto", *FORMATS}:
        raise UsageError(
            Wording("{format} is none of auto, {0}", ", ".join(FORMATS), format=wanted),
            where=keyword("format"),
        )
    keys = file.checkpoint.tensors
    if wanted in {"auto", "peft"} and FORMATS["peft"].matches(file):
        return FORMATS["peft"]
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
            cure="convert it to PEFT's format (adapter_model.safetensors with adapter_config.json)",
        )
    raise UnsupportedError(
        "the file is no adapter of a known format: no key ends in lora_A.weight",
        where=f"{file.label}: {listing(list(keys), 3)}",
        cure="pass a LoRA adapter in PEFT's format; for a whole checkpoint use from_pretrained or fill",
    )
