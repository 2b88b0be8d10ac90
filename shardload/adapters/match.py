"""Pairs what an adapter file holds with a model's layers. Pure: no weight is read, the model is not touched."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from shardload.adapters.adapter import listing
from shardload.adapters.adapter_report import AdapterFault, shown
from shardload.adapters.complete import check_complete
from shardload.adapters.lora import LAYER_ATTRIBUTES, LoraLinear
from shardload.adapters.resolve import ModuleIndex, tensor_of

if TYPE_CHECKING:
    from shardload.adapters.adapter import AdapterContent, LoraEntry, ReplacedEntry
    from shardload.tensor_ref import TensorRef

_SOFT = ("unexpected", "missing")
"""Kinds of faults that `strict=False` turns into warnings. Wrong shapes, ranks and duplicates stay errors."""


@dataclass(frozen=True)
class LayerMatch:
    """A stored layer and the linear layer of the model that it adapts; `path` is the model's."""

    entry: LoraEntry
    path: str
    layer: nn.Linear


@dataclass(frozen=True)
class ReplacedMatch:
    """A stored tensor and the parameter or buffer that it replaces; `path` is its module's in the model.

    `ties` are further places of the same parameter, as module and name, which the stored tensor takes too.
    """

    entry: ReplacedEntry
    path: str
    module: nn.Module
    ties: list[tuple[nn.Module, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The full name of the parameter or buffer in the model."""
        return f"{self.path}.{self.entry.attribute}" if self.path else self.entry.attribute


@dataclass
class AdapterMatch:
    """The plan of one attach; `faults` empty means that it can be carried out."""

    layers: list[LayerMatch] = field(default_factory=list)
    replaced: list[ReplacedMatch] = field(default_factory=list)
    faults: list[AdapterFault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def match_adapter(model: nn.Module, content: AdapterContent, *, strict: bool) -> AdapterMatch:
    """Find the layer or tensor of the model for every entry of the file, and every fault.

    With `strict=False` what is unexpected or missing becomes a warning, unless nothing at all is left.
    """
    matching = _Matching(model, content)
    result = matching.run()
    if not strict and (result.layers or result.replaced):
        soft = [fault for fault in result.faults if fault.kind in _SOFT]
        result.faults = [fault for fault in result.faults if fault.kind not in _SOFT]
        result.warnings += [f"not loaded: {fault}" for fault in soft]
    return result


class _Matching:
    def __init__(self, model: nn.Module, content: AdapterContent) -> None:
        self.model = model
        self.content = content
        self.index = ModuleIndex(model)
        self.result = AdapterMatch(warnings=list(content.warnings))
        self.places: dict[str, str] = {}
        self.owners: dict[int, str] = {}
        self.taken: set[tuple[int, str]] = set()

    def run(self) -> AdapterMatch:
        content, result = self.content, self.result
        paths = [entry.path for entry in content.loras] + [entry.path for entry in content.replaced]
        # Paths of faulty entries are looked up too, so that the faults name modules as the model does.
        faulty = [fault.nearest for fault in content.faults if fault.nearest is not None]
        resolution = self.index.resolve(paths, beside=faulty)
        self.places = resolution.found
        if resolution.ambiguous:
            text = f"the file's module paths fit the model in several ways: {resolution.ambiguous}"
            result.faults.append(AdapterFault("ambiguous", paths[0], text))
            return result
        if resolution.note and self.places:
            result.warnings.append(f"module paths of the file were found {resolution.note}")
        for fault in content.faults:
            result.faults.append(self._with_nearest(fault))
        for entry in content.loras:
            self._match_layer(entry)
        for replaced in content.replaced:
            self._match_replaced(replaced)
        self._find_ties()
        check_complete(self.index, content, result, self.places)
        self._note_aliases()
        return result

    def _fault(
        self, kind: str, ref: TensorRef, text: str, wanted: tuple[int, ...] | None = None, near: str = ""
    ) -> None:
        self.result.faults.append(AdapterFault(kind, ref.name, text, near or None, ref.shape, wanted))

    def _with_nearest(self, fault: AdapterFault) -> AdapterFault:
        """Return a fault of the file with its module named as the model names it, or the nearest one."""
        if fault.nearest is None:
            return fault
        place = self.places.get(fault.nearest)
        if place is not None:
            return replace(fault, nearest=place)
        text = f"{fault.text}; the model has no module {shown(fault.nearest)!r}"
        return replace(fault, text=text, nearest=self._nearest(fault.nearest))

    def _nearest(self, path: str) -> str | None:
        # Looking for the nearest of thousands of names takes time: once it is clear that much is wrong, stop.
        return self.index.nearest(path) if len(self.result.faults) < 20 else None

    def _nowhere(self, ref: TensorRef, path: str) -> None:
        text = f"the model has no module {shown(path)!r}"
        self.result.faults.append(AdapterFault("unexpected", ref.name, text, self._nearest(path), ref.shape))

    def _match_layer(self, entry: LoraEntry) -> None:
        place = self.places.get(entry.path)
        if place is None:
            for ref in entry.refs():
                self._nowhere(ref, entry.path)
            return
        module = self.index.modules[place]
        reason = self._unfit(place, module)
        if reason is not None or not isinstance(module, nn.Linear):
            self._fault("unsupported", entry.a, f"{shown(place)} {reason}")
        elif id(module) in self.owners:
            text = f"the layer {shown(place)} is adapted by {shown(self.owners[id(module)])} too"
            self._fault("duplicate", entry.a, text, near=place)
        elif self._check_shapes(entry, place, module):
            self.result.layers.append(LayerMatch(entry, place, module))
        self.owners[id(module)] = entry.a.name

    def _unfit(self, place: str, module: nn.Module) -> str | None:
        """Return why a module can't be adapted, or None."""
        parent = self.index.parents.get(place)
        if not isinstance(module, nn.Linear):
            return f"is a {type(module).__name__}; this version adapts nn.Linear and its subclasses"
        if isinstance(parent, nn.MultiheadAttention):
            return "belongs to nn.MultiheadAttention, which reads its weight and never calls the layer"
        if isinstance(parent, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
            return (
                "belongs to nn.TransformerEncoderLayer, whose fast path reads its weight and never calls the layer "
                "(torch.backends.mha.set_fastpath_enabled(False) turns that off)"
            )
        if "forward" in vars(module):
            return (
                "has a forward of its own on the instance, which would hide the adapter (accelerate's device hooks "
                "do that): attach first, dispatch afterwards"
            )
        if not isinstance(module, LoraLinear) and any(hasattr(module, name) for name in LAYER_ATTRIBUTES):
            return f"is a {type(module).__name__}, which has LoRA parts of its own"
        return None

    def _check_shapes(self, entry: LoraEntry, place: str, layer: nn.Linear) -> bool:
        """Compare a layer's stored shapes with the model's, and its rank with the config's."""
        before = len(self.result.faults)
        for ref in entry.refs():
            if not ref.is_floating:
                self._fault(
                    "unsupported", ref, f"LoRA weights of dtype {ref.dtype} are not done by this version"
                )
        if len(entry.a.shape) > 2 or len(entry.b.shape) > 2:
            self._fault("unsupported", entry.a, "A and B are those of a convolution or a merged projection")
            return False
        rank = entry.rank
        agreed = entry.b.shape[1:] == (rank,)
        if agreed and entry.stated_rank not in (None, rank):
            text = (
                f"the config gives this layer rank {entry.stated_rank}, the file {rank}: the scale, alpha / rank, "
                "can't be told"
            )
            self._fault("rank", entry.a, text, near=place)
        elif not agreed and entry.stated_rank is not None:
            rank = entry.stated_rank
        wanted: list[tuple[TensorRef, tuple[int, ...]]] = [
            (entry.a, (rank, layer.in_features)),
            (entry.b, (layer.out_features, rank)),
        ]
        if entry.bias is not None:
            wanted.append((entry.bias, (layer.out_features,)))
        for ref, shape in wanted:
            if ref.shape != shape:
                text = (
                    "the shape does not fit"
                    if len(ref.shape) == len(shape)
                    else (
                        "the number of dimensions does not fit (a tensor that was sharded and not gathered is flat)"
                    )
                )
                self._fault("shape", ref, text, shape, near=place)
        return len(self.result.faults) == before

    def _match_replaced(self, entry: ReplacedEntry) -> None:
        place = self.places.get(entry.path)
        if place is None:
            self._nowhere(entry.ref, entry.path)
            return
        module = self.index.modules[place]
        current = tensor_of(module, entry.attribute)
        if current is None:
            text = f"{shown(place) or 'the model'} ({type(module).__name__}) has no tensor {shown(entry.attribute)!r}"
            self._fault("unexpected", entry.ref, text, near=place or self.index.nearest(entry.name) or "")
            return
        shape = tuple(current.shape)
        embedding = isinstance(module, nn.Embedding) or module is _output_embedding(self.model)
        if not entry.declared and not embedding:
            text = "the config accounts for no such tensor (modules_to_save does not name its module)"
            self._fault("unexpected", entry.ref, text, shape, near=place)
        elif embedding and entry.ref.shape != shape and entry.ref.shape[1:] == shape[1:]:
            self._fault("unsupported", entry.ref, "the vocabulary was resized, which is not done yet", shape)
        elif entry.ref.shape != shape:
            self._fault("shape", entry.ref, "the shape does not fit", shape, near=place)
        elif entry.ref.is_floating != current.dtype.is_floating_point:
            text = f"a stored {entry.ref.dtype} can't replace {current.dtype}"
            self._fault("unsupported", entry.ref, text)
        elif (id(module), entry.attribute) in self.taken:
            self._fault(
                "duplicate", entry.ref, f"{shown(place)} is a second name of a module that is in the file too"
            )
        else:
            if not entry.declared:
                self.result.warnings.append(f"{shown(entry.ref.name)}: a saved embedding replaces the base's")
            self.taken.add((id(module), entry.attribute))
            self.result.replaced.append(ReplacedMatch(entry, place, module))

    def _find_ties(self) -> None:
        """Note the other places of every parameter whose replacement its ties follow."""
        tied = {id(tensor_of(m.module, m.entry.attribute)): m for m in self.result.replaced if m.entry.tied}
        if not tied:
            return
        seen = set(self.taken)
        for module in self.index.modules.values():
            for name, parameter in module._parameters.items():
                match = tied.get(id(parameter)) if parameter is not None else None
                if match is not None and (id(module), name) not in seen:
                    seen.add((id(module), name))
                    match.ties.append((module, name))

    def _note_aliases(self) -> None:
        aliases = self.index.aliases()
        for match in self.result.layers:
            others = [path for path in aliases.get(id(match.layer), ()) if path != match.path]
            if others:
                self.result.warnings.append(
                    f"{shown(match.path)} is the same layer as {listing(others)}: all of them are adapted"
                )


def _output_embedding(model: nn.Module) -> object:
    getter = getattr(model, "get_output_embeddings", None)
    try:
        return getter() if callable(getter) else None
    except (AttributeError, NotImplementedError):
        return None
