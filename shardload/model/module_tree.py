"""ModuleTree: divides a model into plain modules and subtrees that load themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class SelfLoading:
    """A module that loads its subtree itself; `why` names the override or hook."""

    prefix: str
    module: nn.Module
    why: str

    @property
    def label(self) -> str:
        """The module's path, for messages."""
        return self.prefix[:-1] or "the model itself"


@dataclass(frozen=True)
class ModuleTree:
    """A model divided in two: `plain` modules by prefix, and the roots of subtrees that load themselves.

    `kinds` are the classes of all modules, `tensors` those of their parameters and buffers.
    """

    plain: dict[str, nn.Module] = field(default_factory=dict)
    self_loading: list[SelfLoading] = field(default_factory=list)
    kinds: set[type] = field(default_factory=set)
    tensors: set[type] = field(default_factory=set)
    _prefixes: dict[str, str | None] = field(default_factory=dict, repr=False)

    def root_of(self, key: str) -> str | None:
        """Return the prefix of the self-loading subtree that `key` lies in, or None for a plain module's key."""
        if not self.self_loading:
            return None
        path = key.rpartition(".")[0]
        if path not in self._prefixes:
            self._prefixes[path] = self._search(path)
        return self._prefixes[path]

    def _search(self, path: str) -> str | None:
        prefixes = {root.prefix for root in self.self_loading}
        if "" in prefixes:
            return ""
        segments = path.split(".") if path else []
        ends = (".".join(segments[:end]) + "." for end in range(1, len(segments) + 1))
        return next((prefix for prefix in ends if prefix in prefixes), None)
