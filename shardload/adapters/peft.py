"""PEFT's LoRA files: adapter_model.safetensors or .bin, with adapter_config.json beside it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from shardload.adapters.adapter import AdapterContent, LoraEntry, ReplacedEntry, canonical, listing
from shardload.adapters.adapter_report import AdapterFault, shown
from shardload.adapters.foreign import foreign_style
from shardload.adapters.settings import PeftSettings, read_settings
from shardload.errors import NotFoundError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardload.adapters.adapter import AdapterFile
    from shardload.tensor_ref import TensorRef

_PREFIX = "base_model.model"
_LORA = re.compile(r"(?:(?P<path>.+)\.)?(?P<part>lora_[AB])(?:\.(?P<adapter>[^.]+))?\.(?P<leaf>weight|bias)")
_VARIANTS = (
    (re.compile(r"(.+\.)?lora_magnitude_vector(\..+)?"), "DoRA"),
    (re.compile(r"(.+\.)?lora_embedding_[AB](\..+)?"), "LoRA on an embedding"),
    (re.compile(r"(.+\.)?trainable_tokens_(delta|original)(\..+)?"), "trainable token indices"),
    (re.compile(r"(.+\.)?lora_diag(\..+)?"), "KaSA"),
    (re.compile(r"(.+\.)?lora_velora_\w+(\..+)?"), "VeLoRA"),
)
_SHARDED = (
    "the tensor has no elements: the model was sharded (DeepSpeed ZeRO-3, FSDP) and not gathered when the "
    "adapter was saved"
)


class Peft:
    """LoRA adapters as PEFT writes them since 0.3."""

    name = "PEFT LoRA"

    def matches(self, file: AdapterFile) -> bool:
        """Whether some key is `….lora_A.weight` or of a variant of it, or the config says that PEFT wrote it."""
        keys = file.checkpoint.tensors
        if any(_LORA.fullmatch(key) or _variant(key) for key in keys):
            return True
        return file.config is not None and "peft_type" in file.config and foreign_style(keys) is None

    def read(self, file: AdapterFile, *, strict: bool) -> AdapterContent:
        """Sort every stored tensor into an entry or a fault; no weight is read.

        Raises NotFoundError without a config, UnsupportedError for variants, CorruptError for a broken config.
        """
        if file.config is None:
            raise NotFoundError(
                f"there is no {file.config_name}: only it knows the scale (lora_alpha) of a PEFT adapter",
                where=file.label,
                cure=f"put the {file.config_name} that was saved with the adapter beside its weights",
            )
        settings = read_settings(file.config, file.config_label, strict=strict)
        variants = [f"{shown(key)} ({_variant(key)})" for key in file.checkpoint.tensors if _variant(key)]
        if variants:
            raise UnsupportedError(
                f"the adapter is more than plain LoRA on linear layers: {listing(variants, 4)}",
                where=file.label,
                cure="merge it into its base with PEFT and load the result",
            )
        return _Sorting(settings, strict).content(self.name, file)


def _variant(key: str) -> str | None:
    return next((name for pattern, name in _VARIANTS if pattern.fullmatch(key)), None)


@dataclass
class _Sorting:
    """The state of sorting one file's keys: the parts of each layer, other tensors, faults, warnings."""

    settings: PeftSettings
    strict: bool
    parts: dict[str, dict[str, TensorRef]] = field(default_factory=dict)
    others: dict[tuple[str, str], ReplacedEntry] = field(default_factory=dict)
    faults: list[AdapterFault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def content(self, name: str, file: AdapterFile) -> AdapterContent:
        """Return everything that the file holds."""
        tensors = file.checkpoint.tensors
        odd = self._odd_ones_out(tensors)
        plain: list[TensorRef] = []
        wrapped: list[TensorRef] = []
        for key, ref in tensors.items():
            if not ref.numel:
                self.faults.append(AdapterFault("empty", key, _SHARDED, _owner(key), ref.shape))
            elif key in odd:
                self.faults.append(AdapterFault("unexpected", key, odd[key], _owner(key)))
            elif found := _LORA.fullmatch(key):
                self._add_part(found, ref)
            else:
                (wrapped if re.search(r"\.(modules_to_save|original_module)\.", key) else plain).append(ref)
        for ref in plain:
            self._add_plain(ref)
        for ref in wrapped:
            self._add_wrapped(ref)
        for key in file.checkpoint.objects:
            self.faults.append(AdapterFault("unexpected", str(key), "the entry is no tensor"))
        loras = tuple(self._loras())
        idle = self.settings.idle_patterns(entry.path for entry in loras)
        if idle:
            self.warnings.append(f"rank or alpha patterns that match no layer: {listing(idle)}")
        return AdapterContent(
            format=name,
            loras=loras,
            replaced=tuple(self.others.values()),
            bias=self.settings.bias,
            whole_modules=self.settings.whole_modules,
            targets=self.settings.targets,
            base=self.settings.base,
            faults=tuple(self.faults),
            warnings=(*self.settings.warnings, *self.warnings),
        )

    def _odd_ones_out(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the keys that differ from the others in prefix or in adapter name, with what is odd.

        One adapter has one prefix and one name: a mixture is a file put together of several.
        """
        prefixes: dict[str, bool] = {}
        names: dict[str, str | None] = {}
        for key in keys:
            prefixes[key] = _PREFIX in key
            if found := _LORA.fullmatch(key):
                names[key] = found["adapter"]
        odd: dict[str, str] = {}
        for values, what in ((names, "adapter name in the key"), (prefixes, f"prefix {_PREFIX}")):
            counts = Counter(values.values()).most_common()
            for key, value in values.items():
                if len(counts) > 1 and value != counts[0][0]:
                    odd[key] = f"the {what} is not that of the other keys: one file holds one adapter"
        return odd

    def _add_part(self, found: re.Match[str], ref: TensorRef) -> None:
        path = canonical(found["path"] or "")
        part = found["part"] if found["leaf"] == "weight" else f"{found['part']}.bias"
        parts = self.parts.setdefault(path, {})
        if part == "lora_A.bias":
            self.faults.append(AdapterFault("unexpected", ref.name, "lora_A has no bias", nearest=path))
        elif part in parts:
            text = f"the same tensor is stored as {shown(parts[part].name)} too"
            self.faults.append(AdapterFault("duplicate", ref.name, text, nearest=path))
        else:
            parts[part] = ref

    def _loras(self) -> Iterable[LoraEntry]:
        for path, parts in self.parts.items():
            a, b, bias = parts.get("lora_A"), parts.get("lora_B"), parts.get("lora_B.bias")
            if a is None or b is None:
                there = a or b or bias
                if there is not None:
                    self._fault_missing("lora_B" if a is not None else "lora_A", there, path)
                continue
            if bias is not None and not self.settings.lora_bias:
                self._contradiction(bias, "the config says lora_bias = false", path)
            if bias is None and self.settings.lora_bias:
                self._fault_missing("lora_B", b, path, leaf="bias")
            yield LoraEntry(
                path=path,
                a=a,
                b=b,
                bias=bias,
                scaling=self.settings.scaling(path),
                dropout=self.settings.dropout,
                stated_rank=self.settings.rank(path),
            )

    def _fault_missing(self, part: str, beside: TensorRef, path: str, leaf: str = "weight") -> None:
        """Note that a layer's tensor is missing, under the key that it would have beside the one that is there."""
        head, _, tail = beside.name.rpartition(".lora_")
        middle = tail[1:].rpartition(".")[0]
        key = f"{head}.{part}{middle}.{leaf}" if head else f"{part}{middle}.{leaf}"
        text = f"the tensor is missing, while {shown(beside.name)} is there"
        self.faults.append(AdapterFault("missing", key, text, nearest=path))

    def _add_plain(self, ref: TensorRef) -> None:
        """Take a key outside the LoRA layers: a bias, a tensor of modules_to_save, or one to judge by the model."""
        owner, _, attribute = ref.name.rpartition(".")
        path = canonical(owner)
        path = "" if path == "base_layer" else path.removesuffix(".base_layer")
        declared = self.settings.saves(path)
        if attribute == "bias" and not declared:
            if self.settings.bias == "none":
                self._contradiction(ref, "the config says bias = none", path)
            elif self.settings.bias == "lora_only" and path not in self.parts:
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
        """Take `X.modules_to_save.<name>.weight`, and the copies that PEFT adds to it when bias = all."""
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
        """Note that file and config disagree; with strict=False the file is believed."""
        if self.strict:
            text += ", but the file holds this tensor (strict=False believes the file)"
            self.faults.append(AdapterFault("config", ref.name, text, nearest=path))
        else:
            self.warnings.append(f"{text}, but the file holds {shown(ref.name)}: the file was believed")


def _owner(key: str) -> str:
    """Return the path of the module that a key belongs to."""
    found = _LORA.fullmatch(key)
    return canonical(key.rpartition(".")[0] if found is None else found["path"] or "")


def _join(base: str, inner: str) -> tuple[str, str]:
    """Return (module path, attribute) of the tensor `inner` below the module `base`."""
    path, _, attribute = (f"{base}.{inner}" if base else inner).rpartition(".")
    return path, attribute
