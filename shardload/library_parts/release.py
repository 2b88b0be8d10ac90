"""The installed release of transformers, found on the disk: its version and its folder. Nothing of it is imported."""

from __future__ import annotations

import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = "shardload.library_parts"
_VERSION = re.compile(r"""^__version__ = ["']([^"']+)["']""", re.MULTILINE)


@dataclass(frozen=True)
class Release:
    """An installed transformers: its version ("5.23.0") and the folder of its package."""

    version: str
    folder: Path

    @property
    def package(self) -> str:
        """The package in which this release's files are run."""
        return f"{PACKAGE}.v{re.sub(r'[^0-9A-Za-z]', '_', self.version)}"

    @property
    def name(self) -> str:
        """The release as people write it ("transformers 5.23.0")."""
        return f"transformers {self.version}"

    def file(self, module: str) -> Path | None:
        """Return the file of a module ("models.llama.modeling_llama"), or None."""
        path = self.folder.joinpath(*module.split(".")) if module else self.folder
        return next(
            (each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None
        )


def installed() -> Release | None:
    """Return the installed release, or None. Its version is read from its `__init__.py`."""
    spec = importlib.util.find_spec("transformers")
    return _read(spec.origin) if spec is not None and spec.origin else None


@functools.lru_cache(maxsize=2)
def _read(origin: str) -> Release | None:
    path = Path(origin)
    version = _VERSION.search(path.read_text(encoding="utf-8"))
    return Release(version[1], path.parent) if version else None


def is_part(kind: type[Any]) -> bool:
    """Return whether a class is defined in a part."""
    return kind.__module__.startswith(f"{PACKAGE}.v")


def name_in_library(kind: type[Any]) -> str:
    """Return the name that the class of a part has in transformers ("transformers.models.llama.modeling_llama.X")."""
    inside = kind.__module__.removeprefix(f"{PACKAGE}.").partition(".")[2]
    return f"transformers.{inside}.{kind.__qualname__}"
