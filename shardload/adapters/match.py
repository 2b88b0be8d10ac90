"""Pairs what an adapter file holds with a model's layers. Pure: no weight is read, the model is not touched."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload.adapters.adapter import listing
from shardload.adapters.adapter_match import AdapterMatch, LayerMatch, ReplacedMatch
from shardload.adapters.adapter_report import AdapterFault, shown
from shardload.adapters.complete import check_complete
from shardload.adapters.layers import LAYER_ATTRIBUTES, LoraLayer, kind_of
from shardload.adapters.replication import replicate
from shardload.adapters.residual import initial_unfit
from shardload.adapters.resolve import ModuleIndex, tensor_of

if TYPE_CHECKING:
    from shardload.adapters.adapter import AdapterContent, LoraEntry, ReplacedEntry, RowsEntry
    from shardload.adapters.layers import LayerKind, Reading
    from shardload.tensor_ref import TensorRef

_SOFT = ("unexpected", "missing")
"""Kinds of faults that `strict=False` turns into warnings. Wrong shapes, ranks and duplicates stay errors."""


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
        replication = replicate(model, content.replication) if content.replication else None
        self.index = ModuleIndex(model, replication)
        self.result = AdapterMatch(replication=replication, warnings=list(content.warnings))
        self.places: dict[str, str] = {}
        self.owners: dict[tuple[int, str], str] = {}
        self._entered: set[int] | None = None
        self.taken: set[tuple[int, str]] = set()

    def run(self) -> AdapterMatch:
        content, result = self.content, self.result
        paths = [entry.path for entry in content.loras] + [entry.path for entry in content.replaced]
        paths += [entry.path for entry in content.rows]
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
        # What is replaced comes first: it may resize an embedding that has LoRA too.
        for replaced in content.replaced:
            self._match_replaced(replaced)
        for lora in content.loras:
            self._match_layer(lora)
        for rows in content.rows:
            self._match_layer(rows)
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

    def _match_layer(self, stored: LoraEntry | RowsEntry) -> None:
        # Kinds look at what they need; only the kind for rows fits an entry of rows.
        entry: Any = stored
        place = self.places.get(entry.path)
        if place is None:
            for ref in entry.refs():
                self._nowhere(ref, entry.path)
            return
        module = self.index.modules[place]
        kind = kind_of(module, entry)
        if kind is None:
            reason: str | None = f"is a {type(module).__name__}; this version has no LoRA for such a layer"
        else:
            reason = self._unfit(place, module) or kind.unfit(module, entry)
            if reason is None and entry.initial is not None:
                reason = initial_unfit(entry.initial, module, kind.read(module, entry).term)
        if reason is not None or kind is None:
            self._fault("unsupported", entry.a, f"{shown(place)} {reason}")
            self.owners[id(module), ""] = entry.a.name
            return
        reading = self._reading(kind, module, entry)
        owned = (id(module), reading.term.attribute)
        if owned in self.owners:
            text = f"the layer {shown(place)} is adapted by {shown(self.owners[owned])} too"
            self._fault("duplicate", entry.a, text, near=place)
        elif self._check_shapes(entry, place, reading):
            ties = self._tied_heads(module) if not reading.term.rank else ()
            self.result.layers.append(LayerMatch(entry, place, module, kind, reading, ties))
        self.owners[owned] = entry.a.name

    def _reading(self, kind: LayerKind, module: nn.Module, entry: LoraEntry) -> Reading:
        """Return how an entry fits a module, whose rows may be resized."""
        reading = kind.read(module, entry)
        resized = next((m for m in self.result.replaced if m.resized and m.module is module), None)
        if resized is not None and isinstance(module, nn.Embedding):
            rank = reading.shapes["a"][0]
            reading = replace(reading, shapes={**reading.shapes, "a": (rank, resized.entry.ref.shape[0])})
        return reading

    def _tied_heads(self, module: nn.Module) -> tuple[nn.Module, ...]:
        """Return the linear layers that are tied to this embedding, as the model's config says, and PEFT asks it."""
        config = getattr(self.model, "config", None)
        said = config.get("tie_word_embeddings") if isinstance(config, dict) else None
        if not (said or getattr(config, "tie_word_embeddings", False)):
            return ()
        weight = module._parameters.get("weight")
        others = dict.fromkeys(
            each for each in self.index.modules.values() if each is not module and isinstance(each, nn.Linear)
        )
        return tuple(
            each for each in others if weight is not None and each._parameters.get("weight") is weight
        )

    def _unfit(self, place: str, module: nn.Module) -> str | None:
        """Return why a module can't be adapted where it is, or None."""
        parent = self.index.parents.get(place)
        if isinstance(parent, nn.MultiheadAttention) and not self._has_entry(parent):
            return (
                "belongs to nn.MultiheadAttention, which reads its weight and never calls the layer: PEFT adapts "
                "both of its projections or none"
            )
        encoder = nn.TransformerEncoderLayer
        if any(isinstance(each, encoder) for each in self._above(place)) and _fast_path():
            return (
                "belongs to nn.TransformerEncoderLayer, whose fast path reads its weight and never calls the layer "
                "(torch.backends.mha.set_fastpath_enabled(False) turns that off)"
            )
        if "forward" in vars(module):
            return (
                "has a forward of its own on the instance, which would hide the adapter (accelerate's device hooks "
                "do that): attach first, dispatch afterwards"
            )
        if not isinstance(module, LoraLayer) and any(hasattr(module, name) for name in LAYER_ATTRIBUTES):
            return f"is a {type(module).__name__}, which has LoRA parts of its own"
        return None

    def _above(self, place: str) -> list[nn.Module]:
        """Return the parent of a place, and that one's parent."""
        above = [place.rpartition(".")[0], place.rpartition(".")[0].rpartition(".")[0]]
        return [self.index.modules[path] for path in above if path in self.index.modules]

    def _has_entry(self, module: nn.Module) -> bool:
        if self._entered is None:
            places = (self.places.get(entry.path) for entry in self.content.loras)
            self._entered = {id(self.index.modules[place]) for place in places if place is not None}
        return id(module) in self._entered

    def _check_shapes(self, entry: LoraEntry | RowsEntry, place: str, reading: Reading) -> bool:
        """Compare a layer's stored shapes with those that fit, and its rank with the config's."""
        before = len(self.result.faults)
        for part, ref in entry.parts():
            if not ref.is_floating:
                self._fault(
                    "unsupported", ref, f"LoRA weights of dtype {ref.dtype} are not done by this version"
                )
            shape = reading.shapes.get(part)
            if shape is None:
                self._fault("unsupported", ref, f"{shown(place)} has no place for this part of an adapter")
            elif ref.shape != shape:
                text = "the shape does not fit"
                if len(ref.shape) != len(shape):
                    text = "the number of dimensions does not fit (a tensor that was sharded and not gathered is flat)"
                self._fault("shape", ref, text, shape, near=place)
        rank = reading.term.rank
        if len(self.result.faults) == before and entry.stated_rank not in {None, rank}:
            text = (
                f"the config gives this layer rank {entry.stated_rank}, the file {rank}: the scale, alpha / rank, "
                "can't be told"
            )
            self._fault("rank", entry.a, text, near=place)
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
        elif entry.ref.shape != shape and not (embedding and self._resizes(entry, module, shape)):
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
            resized = entry.ref.shape != shape
            if resized:
                text = f"{shown(entry.ref.name)}: the vocabulary is resized from {shape[0]} to {entry.ref.shape[0]}"
                self.result.warnings.append(text)
            self.result.replaced.append(ReplacedMatch(entry, place, module, resized=resized))

    def _resizes(self, entry: ReplacedEntry, module: nn.Module, shape: tuple[int, ...]) -> bool:
        """Whether an embedding's stored weight differs from the model's in its number of rows alone."""
        size = "num_embeddings" if isinstance(module, nn.Embedding) else "out_features"
        weight = module._parameters.get("weight")
        users = [
            m
            for m in self.index.modules.values()
            if weight is not None and m._parameters.get("weight") is weight
        ]
        biased = [user for user in users if user._parameters.get("bias") is not None]
        return (
            entry.attribute == "weight"
            and len(entry.ref.shape) == len(shape) == 2
            and entry.ref.shape[1:] == shape[1:]
            and getattr(module, size, None) == shape[0]
            and not biased
        )

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


def _fast_path() -> bool:
    return bool(torch.backends.mha.get_fastpath_enabled())


def _output_embedding(model: nn.Module) -> object:
    getter = getattr(model, "get_output_embeddings", None)
    try:
        return getter() if callable(getter) else None
    except (AttributeError, NotImplementedError):
        return None
