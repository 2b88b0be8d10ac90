"""Pairs the content of an adapter file with a model's layers. No weight is read, the model is not changed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload.adapters.adapter import ReplacedEntry, RowsEntry, listing
from shardload.adapters.adapter_match import AdapterMatch, LayerMatch
from shardload.adapters.adapter_report import AdapterFault, AdapterReport, shown
from shardload.adapters.fingerprint import METADATA_KEY, compare_base
from shardload.adapters.judgement import refuse
from shardload.adapters.layers import LAYER_ATTRIBUTES, LoraLayer, kind_of
from shardload.adapters.match_replaced import match_replaced
from shardload.adapters.missing import check_missing
from shardload.adapters.module_index import ModuleIndex, Resolution
from shardload.adapters.published import as_the_model_has_it
from shardload.adapters.replication import replicate
from shardload.adapters.residual import initial_unfit

if TYPE_CHECKING:
    from shardload.adapters.adapter import AdapterContent, AdapterFile, LoraEntry
    from shardload.adapters.layers import LayerKind, Reading

_SOFT = ("unexpected", "missing")
"""Kinds of faults that `strict=False` turns into warnings. Wrong shapes, ranks and duplicates stay errors."""


def judge(
    model: nn.Module, file: AdapterFile, content: AdapterContent, name: str, *, strict: bool
) -> tuple[AdapterReport, AdapterMatch]:
    """Match an adapter with a model, which may be on meta; return the report so far and the match.

    No weight is read. Raises MismatchError (with the report), UnsupportedError or CorruptError for all faults.
    """
    match = match_adapter(model, content, strict=strict)
    if METADATA_KEY in file.checkpoint.metadata:
        compare_base(file.checkpoint.metadata[METADATA_KEY], match, strict=strict)
    if not (match.layers or match.replaced or match.faults):
        match.faults.append(AdapterFault("missing", file.weights, "the file holds no LoRA weights"))
    loras = [found.reading.term for found in match.layers if found.reading.term.rank]
    report = AdapterReport(
        name=name,
        where=file.label,
        format=f"{content.format}, {file.checkpoint.format}",
        base=content.base,
        modules=len(loras),
        ranks=dict(Counter(term.rank for term in loras)),
        scales=dict(Counter(term.scale for term in loras)),
        warnings=(*file.checkpoint.warnings, *match.warnings),
        faults=tuple(match.faults),
        nbytes=file.checkpoint.nbytes,
    )
    if report.faults:
        refuse(report)
    return report, match


def match_adapter(model: nn.Module, content: AdapterContent, *, strict: bool) -> AdapterMatch:
    """Find the layer or tensor of the model for every entry of the file, and every fault.

    With `strict=False` unexpected and missing tensors become warnings, unless nothing of the file fits.
    """
    result = _Matching(model, content).run()
    if not strict and (result.layers or result.replaced):
        soft = [fault for fault in result.faults if fault.kind in _SOFT]
        result.faults = [fault for fault in result.faults if fault.kind not in _SOFT]
        result.warnings += [f"not loaded: {fault}" for fault in soft]
    return result


class _Matching:
    """The state of one match: where the file's paths lie in the model, and which layers are taken."""

    def __init__(self, model: nn.Module, content: AdapterContent) -> None:
        self.model = model
        replication = replicate(model, content.replication) if content.replication else None
        self.index = ModuleIndex(model, replication)
        self.content = content
        self.result = AdapterMatch(replication=replication, warnings=list(content.warnings))
        self.places: dict[str, str] = {}
        self.owners: dict[tuple[int, str], str] = {}
        self._entered: set[int] | None = None

    def run(self) -> AdapterMatch:
        paths, resolution = self._resolved()
        entries: list[LoraEntry | ReplacedEntry | RowsEntry] = [*self.content.loras, *self.content.replaced]
        entries += self.content.rows
        if any(self._is_strange(entry, resolution.found.get(entry.path)) for entry in entries):
            self.content = as_the_model_has_it(self.content, self.model, self.index)
            paths, resolution = self._resolved()
        content, result = self.content, self.result
        self.places = resolution.found
        if resolution.ambiguous:
            text = f"the file's module paths fit the model in several ways: {resolution.ambiguous}"
            result.faults.append(AdapterFault("ambiguous", paths[0], text))
            return result
        if resolution.note and self.places:
            result.warnings.append(f"module paths of the file were found {resolution.note}")
        for fault in content.faults:
            result.faults.append(self._with_nearest(fault))
        if content.replaced:
            # Replaced tensors come first: one may resize an embedding that has LoRA too.
            match_replaced(self.model, content, self.index, self.places, result)
        for lora in content.loras:
            self._match_layer(lora)
        for rows in content.rows:
            self._match_layer(rows)
        if content.bias != "none" or content.whole_modules:
            check_missing(self.index, content, result, self.places)
        self._note_absent()
        self._note_aliases()
        return result

    def _resolved(self) -> tuple[list[str], Resolution]:
        """Return the paths of the file, and where they are in the model."""
        content = self.content
        paths = [entry.path for entry in content.loras] + [entry.path for entry in content.replaced]
        paths += [entry.path for entry in content.rows]
        # Paths of faulty entries are looked up too, so that the faults name modules as the model does.
        faulty = [fault.nearest for fault in content.faults if fault.nearest is not None]
        return paths, self.index.resolve(paths, beside=faulty)

    def _is_strange(self, entry: LoraEntry | ReplacedEntry | RowsEntry, place: str | None) -> bool:
        """Whether the model has no layer at the entry's path that can take it; it may have one elsewhere."""
        if place is None or isinstance(entry, ReplacedEntry):
            return place is None
        # The entries of a fresh adapter have no shape: they are made for the model's own layers.
        return bool(entry.a.shape) and kind_of(self.index.modules[place], entry) is None

    def _with_nearest(self, fault: AdapterFault) -> AdapterFault:
        """Return a fault of the file with the model's path of its module, or the nearest one."""
        if fault.nearest is None:
            return fault
        place = self.places.get(fault.nearest)
        if place is not None:
            return replace(fault, nearest=place)
        text = f"{fault.text}; the model has no module {shown(fault.nearest)!r}"
        return replace(fault, text=text, nearest=self.result.nearest(fault.nearest, self.index))

    def _match_layer(self, stored: LoraEntry | RowsEntry) -> None:
        # `kind_of` returns a kind that takes the entry, whichever of the two it is.
        entry: Any = stored
        place = self.places.get(entry.path)
        if place is None:
            for ref in entry.refs():
                self.result.add_unexpected(ref, entry.path, self.index)
            return
        module = self.index.modules[place]
        kind = kind_of(module, entry)
        if (
            kind is None and entry.a.shape and _holds_layers(module)
        ):  # the entries of a fresh adapter have no shape
            text = f"{shown(place)} is a {type(module).__name__}, which holds layers and is none"
            self.result.add_fault("unexpected", entry.a, text, near=place)
            return
        if kind is None:
            reason: str | None = f"is a {type(module).__name__}; this version has no LoRA for such a layer"
        else:
            reason = self._unfit(place, module) or kind.unfit(module, entry)
            if reason is None and entry.initial is not None:
                reason = initial_unfit(entry.initial, module, kind.read(module, entry).term)
        if reason is not None or kind is None:
            self.result.add_fault("unsupported", entry.a, f"{shown(place)} {reason}")
            self.owners[id(module), ""] = entry.a.name
            return
        reading = self._reading(kind, module, entry)
        owned = (id(module), reading.term.attribute)
        if owned in self.owners:
            text = f"the layer {shown(place)} is adapted by {shown(self.owners[owned])} too"
            self.result.add_fault("duplicate", entry.a, text, near=place)
        elif self._check_shapes(entry, place, reading):
            ties = self._tied_layers(module) if not reading.term.rank else ()
            self.result.layers.append(LayerMatch(entry, place, module, kind, reading, ties))
        self.owners[owned] = entry.a.name

    def _reading(self, kind: LayerKind, module: nn.Module, entry: LoraEntry) -> Reading:
        """Return how an entry fits a module, whose rows may be resized."""
        reading = kind.read(module, entry)
        if not isinstance(module, nn.Embedding):
            return reading
        resized = next((m for m in self.result.replaced if m.resized and m.module is module), None)
        if resized is None:
            return reading
        shape = (reading.shapes["a"][0], resized.entry.ref.shape[0])
        return replace(reading, shapes={**reading.shapes, "a": shape})

    def _tied_layers(self, module: nn.Module) -> tuple[nn.Module, ...]:
        """Return the heads and embeddings that are tied to this one, where the model's config says so, as in PEFT."""
        config = getattr(self.model, "config", None)
        said = config.get("tie_word_embeddings") if isinstance(config, dict) else None
        if not (said or getattr(config, "tie_word_embeddings", False)):
            return ()
        weight = module._parameters.get("weight")
        others = dict.fromkeys(
            each
            for each in self.index.modules.values()
            if each is not module and isinstance(each, (nn.Linear, nn.Embedding))
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
        result = self.result
        before = len(result.faults)
        for part, ref in entry.parts():
            if not ref.is_floating:
                text = f"this version does not load LoRA weights of dtype {ref.dtype}"
                result.add_fault("unsupported", ref, text)
            shape = reading.shapes.get(part)
            if shape is None:
                result.add_fault(
                    "unsupported", ref, f"{shown(place)} has no place for this part of an adapter"
                )
            elif ref.shape != shape:
                text = "the shape does not fit"
                if len(ref.shape) != len(shape):
                    text = "the number of dimensions does not fit (a tensor that was sharded and not gathered is flat)"
                result.add_fault("shape", ref, text, shape, near=place)
        rank, stated = reading.term.rank, entry.stated_rank
        if not isinstance(entry, RowsEntry):
            _, stated = entry.stated_for(reading.term.attribute)
        if len(result.faults) == before and stated not in {None, rank}:
            text = (
                f"the config gives this layer rank {stated}, the file {rank}: the scale, alpha / rank, "
                "can't be told"
            )
            result.add_fault("rank", entry.a, text, near=place)
        return len(result.faults) == before

    def _note_absent(self) -> None:
        """Warn of layers that the config's target_modules name and the file lacks."""
        placed = set(self.places.values())
        absent = [path for path in self.index.linears(self.content.targets) if path not in placed]
        if absent:
            self.result.warnings.append(
                f"target_modules names {len(absent)} layers that the file lacks: {listing(absent)}"
            )

    def _note_aliases(self) -> None:
        aliases = self.index.aliases()
        for match in self.result.layers if aliases else ():
            others = [path for path in aliases.get(id(match.layer), ()) if path != match.path]
            if others:
                self.result.warnings.append(
                    f"{shown(match.path)} is the same layer as {listing(others)}: all of them are adapted"
                )


def _fast_path() -> bool:
    return bool(torch.backends.mha.get_fastpath_enabled())


def _holds_layers(module: nn.Module) -> bool:
    """Whether a module only holds others: an adapter of a layer at its path is one of another base."""
    return any(True for _ in module.children()) and not any(True for _ in module.parameters(recurse=False))
