"""An adapter of published layers on a model of transformers' classes, which has them elsewhere or in other parts.

A checkpoint has the names that the model's classes had when it was published, and so has an adapter that was trained
then. The conversion that the classes make of a checkpoint (`transformers_classes`) tells where each layer is now. Of
layers that are rows of one tensor, or experts stacked in one, it makes one adapter: A is the A of all of them, one
below the other, and B has each B in its own block, as PEFT does it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

from shardload.adapters.adapter import LoraEntry, ReplacedEntry, RowsEntry, canonical
from shardload.adapters.adapter_report import AdapterFault
from shardload.adapters.fused_factors import Factored, fused
from shardload.adapters.layers import kind_of
from shardload.errors import ShardloadError
from shardload.keymap import KeyMap, leaves
from shardload.model.shell import modules_of
from shardload.tensor_ref import Span, TensorRef
from shardload.transformers_classes import conversions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from shardload.adapters.adapter import AdapterContent
    from shardload.adapters.module_index import ModuleIndex
    from shardload.keymap import Derived

Entry = LoraEntry | ReplacedEntry | RowsEntry
E = TypeVar("E", LoraEntry, ReplacedEntry, RowsEntry)


def as_the_model_has_it(content: AdapterContent, model: nn.Module, index: ModuleIndex) -> AdapterContent:
    """Return an adapter's content with published layers as the model has them; others stay as they are.

    Nothing changes for a model without classes of transformers.
    """
    entries: tuple[Entry, ...] = (*content.loras, *content.replaced, *content.rows)
    # Where one prefix finds some of the paths, those are published ones like the others.
    strange = [entry for entry in entries if not _is_at_home(entry, index.at(entry.path), index)]
    names = Names.of(model, index)
    if not names.rules():
        return content
    moved = _Moved(names, index)
    moved.rename(strange)
    left = [entry for entry in strange if isinstance(entry, LoraEntry) and id(entry) not in moved.to]
    moved.join(left)
    return replace(
        content,
        loras=tuple(one for entry in content.loras for one in moved.of(entry)),
        replaced=tuple(one for entry in content.replaced for one in moved.of(entry)),
        rows=tuple(one for entry in content.rows for one in moved.of(entry)),
        faults=(*content.faults, *moved.faults),
    )


def _is_at_home(entry: Entry, place: str | None, index: ModuleIndex) -> bool:
    """Whether the model has a layer at the entry's path that can take it."""
    if place is None or isinstance(entry, ReplacedEntry):
        return place is not None
    return kind_of(index.modules[place], entry) is not None


@dataclass(frozen=True)
class Names:
    """The base's tensors of a model by name, and the rules by which its classes read and write checkpoints."""

    model: nn.Module
    tensors: dict[str, TensorRef]

    @classmethod
    def of(cls, model: nn.Module, index: ModuleIndex) -> Names:
        """Return the names of a model; those of its adapters are left out."""
        found = {}
        for path, module in index.modules.items():
            kept = {
                name: buffer
                for name, buffer in module._buffers.items()
                if name not in module._non_persistent_buffers_set
            }
            for name, tensor in {**module._parameters, **kept}.items():
                if tensor is not None:
                    key = f"{path}.{name}" if path else name
                    found[key] = header(key, tuple(tensor.shape))
        return cls(model, found)

    def rules(self) -> KeyMap | None:
        """Return the rules, None where there are none. They keep state from tensor to tensor: new ones for each use."""
        kinds = set(map(type, self.model.modules()))
        rules = conversions(kinds, modules_of(self.model), self.tensors)
        return KeyMap(rules) if rules else None

    def written(self, rules: KeyMap | None) -> dict[str, Derived]:
        """Return the tensors of the model's checkpoints, made of the model's own; {} where an operation refuses."""
        try:
            return {} if rules is None else dict(rules.invert().map_headers(self.tensors).tensors)
        except (ShardloadError, RuntimeError, ValueError, LookupError, TypeError, AttributeError):
            return {}  # what operations of transformers raise

    def raw(self, name: str, rules: KeyMap) -> str:
        """Return a canonical name with the segments that wrappers of the model add before a class of transformers."""
        prefixes = [getattr(rule, "prefix", "") for rule in rules.rules]
        known = {canonical(prefix.rstrip(".")): prefix for prefix in prefixes}
        for clean in sorted(known, key=len, reverse=True):
            front = f"{clean}." if clean else ""
            if name.startswith(front):
                return known[clean] + name[len(front) :]
        return name


def header(name: str, shape: tuple[int, ...]) -> TensorRef:
    """Return the header of a tensor of this shape that is stored nowhere, of four bytes an element."""
    return TensorRef(name, "F32", shape, "", Span(0, 4 * prod(shape)))


@dataclass
class _Moved:
    """What became of each entry: `to` has the entries of the model by the id of the file's."""

    names: Names
    index: ModuleIndex
    to: dict[int, list[Entry]] = field(default_factory=dict)
    faults: list[AdapterFault] = field(default_factory=list)

    def of(self, entry: E) -> list[E]:
        """Return the entries, of the same kind, that stand for one of the file."""
        moved: list[Any] = self.to.get(id(entry), [entry])
        return moved

    def rename(self, entries: Iterable[Entry]) -> None:
        """Move the entries whose tensor the classes only rename."""
        rules = self.names.rules()
        assert rules is not None
        owners: dict[str, Entry] = {}
        for entry in entries:
            for name in _tensors(entry):
                owners.setdefault(self.names.raw(name, rules), entry)
        stored = {name: header(name, _shape(entry)) for name, entry in owners.items()}
        for key, tensor in rules.map_headers(stored).tensors.items():
            if key in self.names.tensors and tensor == stored.get(tensor.name):
                self.to[id(owners[tensor.name])] = [self._at(owners[tensor.name], key)]

    def _at(self, entry: Entry, key: str) -> Entry:
        place, _, attribute = key.rpartition(".")
        path = canonical(place)
        if isinstance(entry, ReplacedEntry):
            return replace(entry, path=path, attribute=attribute)
        placed = replace(entry, path=path)
        if isinstance(placed, RowsEntry) or attribute in placed.parameters:
            return placed
        if attribute == "weight" and kind_of(self.index.modules[place], placed) is not None:
            return placed
        return replace(placed, parameters=(attribute,))  # a matrix that is no Linear's now, as a router's

    def join(self, entries: list[LoraEntry]) -> None:
        """Move the entries of layers that are parts of one tensor now, or several."""
        rules = self.names.rules() if entries else None
        if rules is None:
            return
        made = self.names.written(self.names.rules())
        published = {name: header(name, tensor.shape) for name, tensor in made.items()}
        owners = {self.names.raw(f"{entry.path}.weight", rules): entry for entry in entries}
        owners = {
            name: entry
            for name, entry in owners.items()
            if name in published and published[name].shape == _shape(entry)
        }
        if not owners:
            return
        whole = {name: Factored(published[name], owners.get(name)) for name in published}
        found: dict[int, list[Entry]] = defaultdict(list)
        refused: dict[str, str] = {}
        for key, tensor in rules.map_headers(published).tensors.items():
            names = list(dict.fromkeys(leaf.name for leaf in leaves(tensor) if leaf.name in owners))
            if names:
                one = fused(tensor, whole)
                if isinstance(one, str):
                    refused.update((name, f"{one} of {key}") for name in names)
                else:
                    found[id(owners[names[0]])].append(self._whole(one, key))
                    for name in names[1:]:
                        found[id(owners[name])] += []
        for name, entry in owners.items():
            if name in refused:
                text = f"the model has this layer in {refused[name]}"
                self.faults.append(AdapterFault("unsupported", entry.a.name, text))
                found[id(entry)] = []
        self.to.update(found)

    def _whole(self, entry: LoraEntry, key: str) -> LoraEntry:
        place, _, attribute = key.rpartition(".")
        placed = replace(entry, path=canonical(place))
        known = attribute == "weight" and kind_of(self.index.modules[place], placed) is not None
        return placed if known else replace(placed, parameters=(attribute,))


def _tensors(entry: Entry) -> list[str]:
    """Return the names that the base tensor of an entry may have."""
    if isinstance(entry, ReplacedEntry):
        return [entry.name]
    attributes = ("weight", *(entry.parameters if isinstance(entry, LoraEntry) else ()))
    return [f"{entry.path}.{attribute}" if entry.path else attribute for attribute in attributes]


def _shape(entry: Entry) -> tuple[int, ...]:
    """Return the shape of the base tensor that an entry changes, as far as A and B tell it."""
    if isinstance(entry, ReplacedEntry):
        return entry.ref.shape
    if isinstance(entry, RowsEntry):
        return entry.ref.shape
    a, b = (entry.a.shape[::-1], entry.b.shape[::-1]) if entry.columns else (entry.a.shape, entry.b.shape)
    if "lora_embedding_" in entry.a.name:
        a, b = b[::-1], a[::-1]
    return (*b[:1], *a[1:])
