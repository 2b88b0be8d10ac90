"""Copies: small files of a place that is not on this disk, for what takes paths: code, tokenizers."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from shardload.errors import UnsupportedError

if TYPE_CHECKING:
    from shardload.checkpoint.sources.source import SourceFile

_LARGEST = 64 * 2**20  # bytes


class Copies:
    """A folder for copies of the files of one source; it is gone when the process ends."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._folder: Path | None = None

    def of(self, file: SourceFile) -> Path:
        """Return the path of a copy. Raises UnsupportedError for a file of weights, and for any of over 64 MB."""
        if file.size > _LARGEST or file.name.endswith(
            (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt")
        ):
            raise UnsupportedError(
                f"{file.name!r} is not on this disk, and this needs it there",
                where=self._label,
                cure="copy the checkpoint into a folder, and pass that",
            )
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="shardload-"))
            # Code that runs from here has its files until then.
            atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        copy = self._folder / file.name
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_at(0, file.size))
        return copy
