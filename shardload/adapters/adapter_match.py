"""AdapterMatch: an adapter's layers and tensors paired with the model's, and what does not fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardload.adapters.adapter_report import AdapterFault, shown

if TYPE_CHECKING:
    from torch import nn

    from shardload.adapters.adapter import LoraEntry, ReplacedEntry, RowsEntry
    from shardload.adapters.layers import LayerKind, Reading
    from shardload.adapters.module_index import ModuleIndex
    from shardload.adapters.replication import Replication
    from shardload.keymap import Derived

_MOST_NEAREST = 20


@dataclass(frozen=True)
class LayerMatch:
    """A stored layer and the module of the model that it adapts; `path` is the module's path in the model.

    `kind` is the module's kind of layer, `reading` the term and the shapes of the stored tensors in it. `ties` are
    modules that are tied to this one and take the same factors.
    """

    entry: LoraEntry | RowsEntry
    path: str
    layer: nn.Module
    kind: LayerKind
    reading: Reading
    ties: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class ReplacedMatch:
    """A stored tensor and the parameter or buffer that it replaces; `path` is the module's path in the model.

    `ties` are the other modules and names of the same parameter: the stored tensor replaces it there too.
    `resized`: the stored tensor has another number of rows than the model's.
    """

    entry: ReplacedEntry
    path: str
    module: nn.Module
    ties: list[tuple[nn.Module, str]] = field(default_factory=list)
    resized: bool = False

    @property
    def name(self) -> str:
        """The full name of the parameter or buffer in the model."""
        return f"{self.path}.{self.entry.attribute}" if self.path else self.entry.attribute


@dataclass
class AdapterMatch:
    """The plan of one attach; it can be carried out when `faults` is empty."""

    layers: list[LayerMatch] = field(default_factory=list)
    replaced: list[ReplacedMatch] = field(default_factory=list)
    replication: Replication | None = None
    faults: list[AdapterFault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add_fault(
        self, kind: str, ref: Derived, text: str, wanted: tuple[int, ...] | None = None, near: str = ""
    ) -> None:
        """Note what is wrong with a stored tensor; `wanted` is the shape that fits, `near` the model's module."""
        self.faults.append(AdapterFault(kind, ref.name, text, near or None, ref.shape, wanted))

    def add_unexpected(self, ref: Derived, path: str, index: ModuleIndex) -> None:
        """Note a stored tensor whose module the model lacks."""
        text = f"the model has no module {shown(path)!r}"
        self.faults.append(AdapterFault("unexpected", ref.name, text, self.nearest(path, index), ref.shape))

    def nearest(self, path: str, index: ModuleIndex) -> str | None:
        """Return the model's module that looks most like a path, for the first few faults."""
        # Comparing a path with thousands of others takes time, and messages show a few faults only.
        return index.nearest(path) if len(self.faults) < _MOST_NEAREST else None
