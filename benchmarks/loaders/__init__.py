"""The contestants, one per file.

Each file has `LABEL` and `prepare(job) -> load`. `prepare` imports the packages of the loader, which is measured
separately; `load()` returns the model with all weights. No file imports torch at its top: the parent process reads
the labels.

A job is a dict: `folder`, `kind` and `config` of its checkpoint (see `checkpoints.Spec`), `suffix` of its
files, and `dtype`, which is "auto" (as stored) or the dtype to cast to; `spill` is a folder or None.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

LOADERS = ("floor", "plain_read", "ours", "transformers_loader", "accelerate_loader", "assign", "tutorial")


class Loader(Protocol):
    """The interface of each module in this folder."""

    LABEL: str

    def prepare(self, job: dict[str, Any]) -> Callable[[], nn.Module | None]:
        """Import everything, and return the function to measure; it returns None if it makes no model."""


def find(name: str) -> Loader:
    """Return the module of a loader by its name, one of LOADERS."""
    if name not in LOADERS:
        raise ValueError(f"no loader {name!r}; there are {', '.join(LOADERS)}")
    return import_module(f"benchmarks.loaders.{name}")  # type: ignore[return-value]
