"""The checkpoint file formats that shardload reads, in the order in which they are recognised by their first bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.checkpoint.formats.gguf import GgufFormat
from shardload.checkpoint.formats.safetensors import SafetensorsFormat
from shardload.checkpoint.formats.torch_legacy import TorchLegacyFormat
from shardload.checkpoint.formats.torch_zip import TorchZipFormat

if TYPE_CHECKING:
    from shardload.checkpoint.formats.format import Format

FORMATS: tuple[Format, ...] = (SafetensorsFormat(), TorchZipFormat(), TorchLegacyFormat(), GgufFormat())
