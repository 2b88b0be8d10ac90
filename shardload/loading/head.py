"""The head of a model: what lies outside its base model, such as the output layer of a classifier, and a pooler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.errors import UsageError, Wording, keyword

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from shardload.loading.fault import Fault

HEAD = "head"


class Heads:
    """Tells whether a missing or an unexpected tensor is one of a head, by the `base_model_prefix` of the class.

    Where the names of one side have the prefix, the head is what lacks it. On a side without it a part may have one: of
    `language_model.model.…` and `language_model.lm_head.…` the second is the head. Of a side that is a base model only
    a pooler is part of a head. A layer of the base is never one.
    """

    def __init__(self, model: nn.Module, slots: Iterable[str], stored: Iterable[str]) -> None:
        base = getattr(model, "base_model_prefix", None)
        self._prefix = f"{base}." if isinstance(base, str) and base else ""
        self._class = type(model).__name__
        inside = {"missing": slots, "unexpected": stored}
        self._bases = {kind: self._paths_of_bases(names) for kind, names in inside.items()}

    def _paths_of_bases(self, names: Iterable[str]) -> frozenset[str]:
        """Return the paths below which the base model lies: "" for the model itself, or those of its parts."""
        if not self._prefix:
            return frozenset()
        found = {
            name[:place]
            for name in names
            for place in (0 if name.startswith(self._prefix) else name.find(f".{self._prefix}") + 1,)
            if place or name.startswith(self._prefix)
        }
        return frozenset({""}) if "" in found else frozenset(found)

    def have(self, fault: Fault) -> bool:
        """Return whether the tensor of a fault belongs to a head."""
        if fault.kind not in self._bases or not self._prefix:
            return False
        name = (fault.stored_key or fault.key) if fault.kind == "unexpected" else fault.key
        if name.removeprefix(self._prefix).partition(".")[0] == "pooler":
            return True
        return any(
            name.startswith(path)
            and not name.startswith(f"{path}{self._prefix}")
            and not (path and any(map(str.isdigit, name.split("."))))  # a layer beside a part's base
            for path in self._bases[fault.kind]
        )

    def cure(self, faults: Sequence[Fault]) -> str | None:
        """Return how to load with a new head, or without one, where that explains every fault."""
        if not faults or not all(map(self.have, faults)):
            return None
        kinds = {fault.kind for fault in faults}
        new = Wording("start with a new head: {allow_missing}", allow_missing=HEAD)
        old = Wording("leave the stored head out: {allow_unexpected}", allow_unexpected=HEAD)
        if len(kinds) == 1:
            return new if "missing" in kinds else old
        return Wording("{0}, and {1}", new, old)

    def require(self, argument: str) -> None:
        """Raise UsageError where the class does not say what its base model is."""
        if not self._prefix:
            raise UsageError(
                f"{self._class} has no base_model_prefix, which tells a head from its base",
                where=keyword(argument, HEAD),
                cure=Wording("name the keys: {0}", keyword(argument, ["…"])),
            )
