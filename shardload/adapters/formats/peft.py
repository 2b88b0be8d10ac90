"""PEFT's LoRA files: adapter_model.safetensors or .bin, with adapter_config.json beside it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from shardload.adapters.adapter import (
    SHARDED,
    AdapterContent,
    LoraEntry,
    ReplacedEntry,
    RowsEntry,
    canonical,
    listing,
)
from shardload.adapters.adapter_report import AdapterFault, shown
from shardload.adapters.formats.foreign import foreign_style
from shardload.adapters.settings import PeftSettings, read_settings
from shardload.errors import Cures, NotFoundError, UnsupportedError, Wording

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shardload.adapters.adapter import AdapterFile, ReadOptions
    from shardload.tensor_ref import TensorRef

_PREFIX = "base_model.model"
_LORA = re.compile(
    r"(?:(?P<path>.+)\.)?(?:"
    r"(?P<part>lora_[AB])(?:\.(?P<adapter>[^.]+))?\.(?P<leaf>weight|bias)"
    r"|(?P<bare>lora_embedding_[AB]|lora_magnitude_vector)(?:\.(?P<named>(?!weight$)[^.]+))?(?:\.weight)?)"
)
_ROWS = re.compile(r"(?:(?P<path>.+)\.)?token_adapter(?:\.[^.]+)?\.trainable_tokens_delta(?:\.[^.]+)?")
_PARTS = {
    "lora_A": "a",
    "lora_B": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
}
_VARIANTS = (
    (re.compile(r"(.+\.)?lora_diag(\..+)?"), "KaSA"),
    (re.compile(r"(.+\.)?lora_velora_\w+(\..+)?"), "VeLoRA"),
    (re.compile(r"(.+\.)?lora_arrow(\..+)?"), "Arrow"),
)


class Peft:
    """LoRA adapters as PEFT 0.2 to 0.21 writes them, also with names that lack PEFT's prefix."""

    name = "PEFT LoRA"

    def matches(self, file: AdapterFile) -> bool:
        """Return whether some key is `….lora_A.weight` or a variant of it, or the config has a peft_type."""
        keys = file.checkpoint.tensors
        if any(_LORA.fullmatch(key) or _ROWS.fullmatch(key) or _variant(key) for key in keys):
            return True
        return file.config is not None and "peft_type" in file.config and foreign_style(keys) is None

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterContent:
        """Sort every stored tensor into an entry or a fault; no weight is read.

        Raises NotFoundError without a config and alpha, UnsupportedError for variants, CorruptError for a broken
        config.
        """
        config = file.config
        if config is None and options.alpha is None:
            raise NotFoundError(
                f"there is no {file.config_name}, which holds the scale (lora_alpha) of a PEFT adapter",
                where=file.label,
                cure=Cures(
                    f"put the {file.config_name} that was saved with the adapter beside its weights",
                    Wording("pass {alpha}", alpha=...),
                ),
            )
        settings = read_settings(
            config or {"lora_alpha": options.alpha}, file.config_label, strict=options.strict
        )
        if config is not None and options.alpha is not None:
            notes = (
                *settings.warnings,
                f"alpha = {options.alpha:g} was given; the config's is {settings.alpha:g}",
            )
            settings = replace(settings, alpha=options.alpha, alpha_pattern=None, warnings=notes)
        if config is None:
            # Without a config there are no flags to contradict: the keys decide.
            settings = replace(settings, believes=True)
        if options.enable_lora is not None:
            settings = replace(settings, enable_lora=options.enable_lora)
        variants = [f"{shown(key)} ({_variant(key)})" for key in file.checkpoint.tensors if _variant(key)]
        if variants:
            raise UnsupportedError(
                f"the adapter is more than LoRA: {listing(variants, 4)}",
                where=file.label,
                cure="merge it into its base with PEFT and load the result",
            )
        return _Sorting(settings, options.strict and not settings.believes).content(self.name, file)


def _variant(key: str) -> str | None:
    if ".lora_A." in key or ".lora_B." in key:
        return None
    return next((name for pattern, name in _VARIANTS if pattern.fullmatch(key)), None)


@dataclass
class _Sorting:
    """The state of sorting one file's keys: the parts of each layer, other tensors, faults, warnings."""

    settings: PeftSettings
    strict: bool
    parts: dict[tuple[str, int], dict[str, TensorRef]] = field(default_factory=dict)
    rows: dict[str, RowsEntry] = field(default_factory=dict)
    others: dict[tuple[str, str], ReplacedEntry] = field(default_factory=dict)
    faults: list[AdapterFault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def content(self, name: str, file: AdapterFile) -> AdapterContent:
        """Return everything that the file holds."""
        self._sort(file)
        loras = tuple(self._loras())
        if self.settings.tokens and not self.rows:
            text = "the tensor is missing: the config says trainable_token_indices"
            module = self.settings.tokens[0][0] or "embed_tokens"
            key = f"{_PREFIX}.{module}.token_adapter.trainable_tokens_delta"
            self.faults.append(AdapterFault("missing", key, text, nearest=module))
        idle = self.settings.idle_patterns(entry.path for entry in loras)
        if idle:
            self.warnings.append(f"rank or alpha patterns that match no layer: {listing(idle)}")
        return AdapterContent(
            format=name,
            loras=loras,
            replaced=tuple(self.others.values()),
            rows=tuple(self.rows.values()),
            replication=self.settings.replication,
            bias=self.settings.bias,
            whole_modules=self.settings.whole_modules,
            targets=self.settings.targets,
            base=self.settings.base,
            faults=tuple(self.faults),
            warnings=(*self.settings.warnings, *self.warnings),
        )

    def _sort(self, file: AdapterFile) -> None:
        """Sort every stored tensor; those of wrapped modules last, because they may be copies of others."""
        tensors = file.tensors
        parts = {key: _LORA.fullmatch(key) for key in tensors}
        odd = self._odd_ones_out(parts)
        plain: list[TensorRef] = []
        wrapped: list[TensorRef] = []
        for key, ref in tensors.items():
            if not ref.numel:
                self.faults.append(AdapterFault("empty", key, SHARDED, _owner(key), ref.shape))
            elif key in odd:
                self.faults.append(AdapterFault("unexpected", key, odd[key], _owner(key)))
            elif found := parts[key]:
                self._add_part(found, ref)
            elif found := _ROWS.fullmatch(key):
                self._add_rows(found, ref)
            else:
                (wrapped if re.search(r"\.(modules_to_save|original_module)\.", key) else plain).append(ref)
        for ref in plain:
            self._add_plain(ref)
        for ref in wrapped:
            self._add_wrapped(ref)
        for key in file.checkpoint.objects:
            self.faults.append(AdapterFault("unexpected", str(key), "the entry is no tensor"))

    def _odd_ones_out(self, parts: Mapping[str, re.Match[str] | None]) -> dict[str, str]:
        """Return the keys that differ from most others in prefix or in adapter name, each with the reason.

        One adapter has one prefix and one name: a file with several was assembled from several adapters.
        """
        prefixes: dict[str, bool] = {}
        names: dict[str, str | None] = {}
        for key, found in parts.items():
            prefixes[key] = _PREFIX in key
            if found:
                names[key] = found["adapter"] or found["named"]
        odd: dict[str, str] = {}
        for values, what in ((names, "adapter name in the key"), (prefixes, f"prefix {_PREFIX}")):
            counts = Counter(values.values()).most_common()
            for key, value in values.items():
                if len(counts) > 1 and value != counts[0][0]:
                    odd[key] = f"the {what} is not that of the other keys: one file holds one adapter"
        return odd

    def _add_part(self, found: re.Match[str], ref: TensorRef) -> None:
        path, depth = _place(found["path"] or "")
        is_bias = found["leaf"] == "bias"
        part = "bias" if is_bias else _PARTS[found["part"] or found["bare"]]
        parts = self.parts.setdefault((path, depth), {})
        if is_bias and found["part"] == "lora_A":
            self.faults.append(AdapterFault("unexpected", ref.name, "lora_A has no bias", nearest=path))
        elif part in parts:
            text = f"the same tensor is stored as {shown(parts[part].name)} too"
            self.faults.append(AdapterFault("duplicate", ref.name, text, nearest=path))
        else:
            parts[part] = ref

    def _add_rows(self, found: re.Match[str], ref: TensorRef) -> None:
        """Add the trained rows of an embedding; the config says which rows they are."""
        path, _ = _place(found["path"] or "")
        indices = self.settings.token_indices(path)
        if indices is None:
            text = "the config has no trainable_token_indices for this module: the rows of this tensor are unknown"
            self.faults.append(AdapterFault("config", ref.name, text, nearest=path))
        elif ref.shape[:1] != (len(indices),):
            text = f"the file holds {ref.shape[0] if ref.shape else 0} rows, the config names {len(indices)} tokens"
            self.faults.append(AdapterFault("config", ref.name, text, nearest=path))
        elif path in self.rows:
            text = f"the same tensor is stored as {shown(self.rows[path].ref.name)} too"
            self.faults.append(AdapterFault("duplicate", ref.name, text, nearest=path))
        else:
            self.rows[path] = RowsEntry(path, ref, indices)

    def _loras(self) -> Iterable[LoraEntry]:
        settings = self.settings
        for (path, depth), parts in self.parts.items():
            a, b, bias, magnitude = (parts.get(part) for part in ("a", "b", "bias", "magnitude"))
            if a is None or b is None:
                there = a or b or bias or magnitude
                if there is not None:
                    if a is None:
                        self._fault_missing("lora_A", there, path)
                    if b is None:
                        self._fault_missing("lora_B", there, path)
                continue
            if bias is not None and not settings.lora_bias:
                self._contradiction(bias, "the config says lora_bias = false", path)
            if bias is None and settings.lora_bias and "embedding" not in b.name:
                self._fault_missing("lora_B", b, path, leaf="bias")
            if magnitude is not None and not settings.use_dora:
                self._contradiction(magnitude, "the config says use_dora = false", path)
            if magnitude is None and settings.use_dora:
                self._fault_missing("lora_magnitude_vector", b, path)
            parameters = settings.parameters(path)
            yield LoraEntry(
                path=path,
                a=a,
                b=b,
                bias=bias,
                magnitude=magnitude,
                scaling=settings.scaling(path),
                dropout=settings.dropout,
                stated_rank=settings.rank(path),
                parameters=parameters,
                by_parameter={name: settings.of_parameter(path, name) for name in parameters},
                depth=depth,
                peft_version=settings.peft_version,
                merged=settings.enable_lora is not None,
                enable=settings.enable_lora,
                initial=settings.initial,
            )

    def _fault_missing(self, part: str, beside: TensorRef, path: str, leaf: str = "weight") -> None:
        """Add the fault of a missing tensor, under the key that it would have beside the present one."""
        head, _, tail = beside.name.rpartition(".lora_")
        middle = tail[1:].rpartition(".")[0]
        if tail.startswith("embedding_"):
            key = (
                f"{head}.{part.replace('lora_', 'lora_embedding_', 1)}"
                if part[-1] in "AB"
                else f"{head}.{part}"
            )
        elif part[-1] in "AB":
            key = f"{head}.{part}{middle}.{leaf}" if head else f"{part}{middle}.{leaf}"
        else:
            key = f"{head}.{part}" if head else part
        text = f"the tensor is missing, while {shown(beside.name)} is there"
        self.faults.append(AdapterFault("missing", key, text, nearest=path))

    def _add_plain(self, ref: TensorRef) -> None:
        """Add a tensor outside the LoRA layers: a bias, a part of modules_to_save, or one for the match to judge."""
        owner, _, attribute = ref.name.rpartition(".")
        path, _ = _place(owner)
        declared = self.settings.saves(path)
        if "bias" in attribute and not declared:
            if self.settings.bias == "none":
                self._contradiction(ref, "the config says bias = none", path)
            elif self.settings.bias == "lora_only" and not any(path == known for known, _ in self.parts):
                text = "the config says bias = lora_only, and this module has no LoRA"
                self.faults.append(AdapterFault("unexpected", ref.name, text, nearest=path))
            self._add_entry(ReplacedEntry(path, attribute, ref, tied=True))
        else:
            self._add_entry(ReplacedEntry(path, attribute, ref, declared=declared, tied=not declared))

    def _add_entry(self, entry: ReplacedEntry) -> None:
        known = self.others.get((entry.path, entry.attribute))
        if known is not None:
            text = f"the same tensor is stored as {shown(known.ref.name)} too"
            self.faults.append(AdapterFault("duplicate", entry.ref.name, text, nearest=entry.path))
            return
        self.others[entry.path, entry.attribute] = entry

    def _add_wrapped(self, ref: TensorRef) -> None:
        """Add `X.modules_to_save.<name>.weight`, and the copies that PEFT stores too when bias = all."""
        kind = "original_module" if ".original_module." in ref.name else "modules_to_save"
        owner, _, rest = ref.name.rpartition(f".{kind}.")
        base = canonical(owner)
        for inner in (rest, rest.partition(".")[2]):
            path, attribute = _join(base, inner)
            known = self.others.get((path, attribute))
            if known is None or self.settings.bias != "all" or attribute != "bias":
                continue
            copies, spares = known.copies, known.spares
            if kind == "modules_to_save":
                copies += (ref,)
            else:
                spares += (ref,)
            self.others[path, attribute] = replace(known, copies=copies, spares=spares)
            return
        inner = rest.partition(".")[2] or rest
        path, attribute = _join(base, inner)
        if kind == "modules_to_save":
            self._add_entry(ReplacedEntry(path, attribute, ref, declared=self.settings.saves(base)))
        else:
            text = "a value of the base model is stored with the adapter"
            self.faults.append(AdapterFault("unexpected", ref.name, text, nearest=base))

    def _contradiction(self, ref: TensorRef, text: str, path: str) -> None:
        """Add the fault that file and config disagree; with strict=False the file decides, and it is a warning."""
        if self.strict:
            text += ", but the file holds this tensor (strict=False trusts the file)"
            self.faults.append(AdapterFault("config", ref.name, text, nearest=path))
        else:
            self.warnings.append(f"{text}, but the file holds {shown(ref.name)}: the file was trusted")


def _owner(key: str) -> str:
    """Return the path of the module that a key belongs to."""
    found = _LORA.fullmatch(key)
    return _place(key.rpartition(".")[0] if found is None else found["path"] or "")[0]


def _place(owner: str) -> tuple[str, int]:
    """Return the module path without PEFT's `base_layer` segments, and how many of them end it.

    PEFT wraps a module once for each of its adapted parameters; MultiheadAttention's parts lie in the wrapped one.
    """
    segments = canonical(owner).split(".")
    depth = 0
    while depth < len(segments) and segments[-1 - depth] == "base_layer":
        depth += 1
    return ".".join(segment for segment in segments if segment != "base_layer"), depth


def _join(base: str, inner: str) -> tuple[str, str]:
    """Return (module path, attribute) of the tensor `inner` below the module `base`."""
    path, _, attribute = (f"{base}.{inner}" if base else inner).rpartition(".")
    return path, attribute
