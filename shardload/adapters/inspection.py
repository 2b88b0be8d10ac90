"""inspect_adapter: the content of an adapter and how it fits a base, from headers alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from shardload.adapters.adapter import ReadOptions, listing
from shardload.adapters.adapter_report import AdapterFault, counted, fault_dict, fault_lines, shown, size_of
from shardload.adapters.match import match_adapter
from shardload.adapters.merging.changes import base_on_disk
from shardload.adapters.source import open_adapter, read_content
from shardload.checkpoint.checkpoint import open_checkpoint
from shardload.errors import UsageError, Wording, keywords_of
from shardload.keywords import entry_point, place_of

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from typing_extensions import Unpack

    from shardload.adapters.adapter import AdapterContent, AdapterFile, LoraEntry
    from shardload.adapters.adapter_match import AdapterMatch
    from shardload.keymap import KeyMap
    from shardload.keywords import SourceKeywords
    from shardload.where import WhereLike


@dataclass(frozen=True)
class Coverage:
    """How an adapter fits a base: how many of its layers the base has, and how much of the base they are.

    `share` is the adapted and replaced tensors' share of the base's parameters, 0 to 1. `kinds` counts the adapted
    layers by kind.
    """

    base: str
    fitting: int
    layers: int
    share: float
    kinds: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class AdapterInspection:
    """What the headers and the config of an adapter say. `str()` is for people, `to_dict()` for JSON.

    `layers` counts the adapted layers, `ranks` and `scales` count them by value; `scales` is empty when the file
    does not hold alpha. `variants` names what is more than plain LoRA. `faults` would make a load raise.
    """

    where: str
    format: str
    base: str | None
    layers: int
    ranks: dict[int, int]
    scales: dict[float, int]
    variants: tuple[str, ...]
    replaced: tuple[str, ...]
    tensors: int
    parameters: int
    nbytes: int
    coverage: Coverage | None = None
    faults: tuple[AdapterFault, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as JSON-ready data; ranks and scales are lists of pairs."""
        plain = {
            key: value
            for key, value in vars(self).items()
            if key not in {"ranks", "scales", "coverage", "faults"}
        }
        return {
            **plain,
            "ranks": [{"rank": rank, "layers": count} for rank, count in self.ranks.items()],
            "scales": [{"scale": scale, "layers": count} for scale, count in self.scales.items()],
            "coverage": None if self.coverage is None else vars(self.coverage),
            "faults": [fault_dict(fault) for fault in self.faults],
        }

    def __str__(self) -> str:
        """Return a few lines: format, layers, variants, size, coverage of the base, faults and warnings."""
        scale = counted(self.scales) if self.scales else "alpha / rank (alpha is not in the file)"
        rows = [
            ("format", self.format),
            ("made for", self.base or "the adapter does not say"),
            ("adapts", f"{self.layers:,} layers, rank {counted(self.ranks)}, scale {scale}"),
            ("variants", ", ".join(self.variants)),
            ("replaces", listing(self.replaced, 4)),
            (
                "weights",
                f"{size_of(self.nbytes)} in {self.tensors:,} tensors, {self.parameters:,} parameters",
            ),
        ]
        found = self.coverage
        if found is not None:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.kinds.items())
            rows.append(
                ("fits", f"{found.fitting:,} of {found.layers:,} layers of {found.base}: {kinds or 'none'}")
            )
            rows.append(("covers", f"{found.share:.1%} of the base's parameters"))
        lines = [f"adapter {shown(self.where)}"]
        lines += [f"  {label:<9} {shown(text)}" for label, text in rows if text]
        lines += [f"  warning: {shown(warning)}" for warning in self.warnings]
        return "\n".join(lines + [f"  fault: {line}" for line in fault_lines(self.faults)])


@entry_point
def inspect_adapter(
    where: WhereLike,
    base: str | os.PathLike[str] | nn.Module | None = None,
    *,
    format: str = "auto",  # noqa: A002 - as in load_adapter
    alpha: float | None = None,
    key_map: KeyMap | Mapping[str, str | None] | None = None,
    enable_lora: Sequence[bool] | None = None,
    **keywords: Unpack[SourceKeywords],
) -> AdapterInspection:
    """Return what an adapter holds, from its headers: format, rank, scale, variants, and how it fits a base.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> report = shardload.attach_lora(model, r=2, targets=["0"])
        >>> files = shardload.save_adapter(model, "lora")
        >>> found = shardload.inspect_adapter("lora")
        >>> found.layers, found.ranks, found.parameters
        (1, {2: 1}, 24)

    `base` is a model (on meta will do) or a checkpoint, of which only headers are read. What would make a load raise
    is listed in `faults`, except for what is declined by name (UnsupportedError) or no adapter at all.
    """
    file = open_adapter(place_of(where, keywords))
    options = ReadOptions.of(alpha, enable_lora, strict=True)
    content, unknown = _read(file, format, options, key_map)
    match, coverage = (None, None) if base is None else _fit(file, content, base)
    ranks, scales = _ranks_and_scales(content, match)
    refs = file.checkpoint.tensors.values()
    return AdapterInspection(
        where=file.label,
        format=f"{content.format}, {file.checkpoint.format}",
        base=content.base,
        layers=len(content.loras),
        ranks=ranks,
        scales={} if unknown else scales,
        variants=_variants(content),
        replaced=tuple(entry.name for entry in content.replaced),
        tensors=len(file.checkpoint.tensors),
        parameters=sum(ref.numel for ref in refs),
        nbytes=file.checkpoint.nbytes,
        coverage=coverage,
        faults=tuple(content.faults if match is None else match.faults),
        warnings=(
            *file.checkpoint.warnings,
            *(content.warnings if match is None else match.warnings),
            *unknown,
        ),
    )


def _read(
    file: AdapterFile,
    format: str,  # noqa: A002
    options: ReadOptions,
    key_map: KeyMap | Mapping[str, str | None] | None,
) -> tuple[AdapterContent, tuple[str, ...]]:
    """Return the content, and a warning when the file needs an alpha and the caller gave none."""
    try:
        return read_content(file, format=format, options=options, key_map=key_map), ()
    except UsageError as missing:
        if options.alpha is not None or "alpha" not in keywords_of(missing.cure):
            raise
        known = ReadOptions(options.strict, 1.0, options.enable_lora)
        content = read_content(file, format=format, options=known, key_map=key_map)
        return content, (Wording("{0}: {1}", missing.what, missing.cure),)


def _fit(
    file: AdapterFile, content: AdapterContent, base: str | os.PathLike[str] | nn.Module
) -> tuple[AdapterMatch, Coverage]:
    """Match the content with a model, or with the skeleton of a checkpoint."""
    if isinstance(base, nn.Module):
        model, label = base, type(base).__name__
    else:
        checkpoint = open_checkpoint(base)
        model, label = base_on_disk(checkpoint, content, file.config or {})[0], checkpoint.label
    match = match_adapter(model, content, strict=True)
    changed = {
        id(tensor): tensor.numel()
        for found in match.layers
        if (tensor := found.layer._parameters.get(found.reading.term.attribute)) is not None
    }
    changed |= {
        id(tensor): tensor.numel()
        for found in match.replaced
        if (tensor := found.module._parameters.get(found.entry.attribute)) is not None
    }
    total = sum({id(tensor): tensor.numel() for tensor in model.parameters()}.values())
    coverage = Coverage(
        base=label,
        fitting=len(match.layers),
        layers=len(content.loras) + len(content.rows),
        share=sum(changed.values()) / total if total else 0.0,
        kinds=dict(Counter(found.kind.name for found in match.layers)),
    )
    return match, coverage


def _ranks_and_scales(
    content: AdapterContent, match: AdapterMatch | None
) -> tuple[dict[int, int], dict[float, int]]:
    """Count ranks and scales: from the matched layers, else from the shapes and the config."""
    if match is not None and match.layers:
        terms = [found.reading.term for found in match.layers if found.reading.term.rank]
        return dict(Counter(term.rank for term in terms)), dict(Counter(term.scale for term in terms))
    ranks = [_rank(entry) for entry in content.loras]
    scales = [entry.scaling.of(rank) for entry, rank in zip(content.loras, ranks, strict=True)]
    return dict(Counter(ranks)), dict(Counter(scales))


def _rank(entry: LoraEntry) -> int:
    return entry.stated_rank or entry.rank_by_shapes()


def _variants(content: AdapterContent) -> tuple[str, ...]:
    loras = content.loras
    found = {
        "rsLoRA": any(entry.scaling.use_rslora for entry in loras),
        "DoRA": any(entry.magnitude is not None for entry in loras),
        "lora_bias": any(entry.bias is not None for entry in loras),
        f"bias = {content.bias}": content.bias != "none",
        "MergedLinear": any(entry.merged and entry.is_merged() for entry in loras),
        "fused experts": any(entry.parameters for entry in loras),
        "trainable tokens": bool(content.rows),
        "layer_replication": bool(content.replication),
        "modules_to_save": bool(content.whole_modules),
        "PiSSA": any(entry.initial == "pissa" for entry in loras),
        "OLoRA": any(entry.initial == "olora" for entry in loras),
    }
    return tuple(name for name, there in found.items() if there)
