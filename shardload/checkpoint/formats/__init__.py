"""The checkpoint file formats that shardload reads, in the order in which they are recognised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload._system.file_kind import HEAD_BYTES
from shardload.checkpoint.formats.not_a_checkpoint import explain
from shardload.checkpoint.formats.safetensors import SafetensorsFormat
from shardload.checkpoint.formats.torch_legacy import TorchLegacyFormat
from shardload.checkpoint.formats.torch_zip import TorchZipFormat

if TYPE_CHECKING:
    from shardload.checkpoint.formats.format import Format
    from shardload.checkpoint.sources.source import SourceFile

FORMATS: tuple[Format, ...] = (SafetensorsFormat(), TorchZipFormat(), TorchLegacyFormat())


def format_of(file: SourceFile) -> Format:
    """Return the format of a file, judged by its first bytes, never by its name.

    Raises CorruptError or UnsupportedError, which say what the file is instead and what to do about it.
    """
    head = file.read_at(0, HEAD_BYTES)
    for fmt in FORMATS:
        if fmt.matches(head[:64]):
            return fmt
    raise explain(file, head)
