"""attach_lora: a fresh LoRA, ready to be trained, that does not change the output yet."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload._system.gc_freeze import gc_frozen
from shardload.adapters.adapter import AdapterContent, LoraEntry, ReplacedEntry, canonical, listing
from shardload.adapters.adapter_report import AdapterReport, AdapterRow
from shardload.adapters.attach import attach_values, check_name, check_owner
from shardload.adapters.initial_factors import INITS, initial_factors
from shardload.adapters.judgement import refuse
from shardload.adapters.layers import kind_of
from shardload.adapters.match import match_adapter
from shardload.adapters.merging.merge_on_eval import follow_training
from shardload.adapters.missing import whole_tensors
from shardload.adapters.module_index import ModuleIndex, tensor_of
from shardload.adapters.settings import PeftSettings, read_settings
from shardload.adapters.targets import targets_of
from shardload.adapters.values import AdapterValues, LayerValues
from shardload.checkpoint.shard import CODES
from shardload.dtypes import parse_dtype
from shardload.errors import CorruptError, UsageError
from shardload.keywords import entry_point
from shardload.tensor_ref import Span, TensorRef

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from shardload.adapters.adapter_match import AdapterMatch, LayerMatch
    from shardload.adapters.layers import Factors


@entry_point
@gc_frozen
def attach_lora(
    model: nn.Module,
    r: int = 8,
    alpha: float = 16,
    targets: str | re.Pattern[str] | Sequence[str] = "all-linear",
    *,
    dropout: float = 0.0,
    bias: str = "none",
    use_rslora: bool = False,
    use_dora: bool = False,
    lora_bias: bool = False,
    modules_to_save: Sequence[str] = (),
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    exclude: str | Sequence[str] = (),
    layers: int | Sequence[int] = (),
    layers_pattern: str | Sequence[str] = (),
    init: bool | str = True,
    seed: int | None = None,
    dtype: str | torch.dtype | None = None,
    merge_on_eval: bool = False,
    name: str = "default",
) -> AdapterReport:
    """Attach a fresh LoRA to a model, in place: it changes nothing yet, and only its own parameters train.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> report = shardload.attach_lora(model, r=2, alpha=4, targets=["0"])
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['0.lora_A.default.weight', '0.lora_B.default.weight']

    `targets` are names of modules (each the end of a path), one regular expression for whole paths, or "all-linear":
    every linear layer but the output head; they and all other settings mean what they mean in PEFT's LoraConfig
    (`exclude` is exclude_modules, `layers` is layers_to_transform, `init` is init_lora_weights: True, False or
    "gaussian"). A is drawn from U(-1/sqrt(in), 1/sqrt(in)) and B is zero (for embeddings A is zero and B is normal),
    from `seed` where it is given, else from torch's generator. Both are float32, or the base layer's dtype where
    that is wider; `dtype` says otherwise. With `bias` and `modules_to_save` copies of the base's tensors train in
    their places, and the base keeps its own.

    The base is frozen. The first adapter becomes the active one; a further one is attached and not active. With
    `merge_on_eval` the model's eval() merges what is active and train() takes it back, bit for bit.
    Raises UsageError for settings that no adapter can have, and, naming the nearest modules, when nothing is
    targeted or a name matches nothing; UnsupportedError for modules that take no LoRA. Then the model is as it was.
    """
    start = time.perf_counter()
    check_name(model, name)
    config = {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "bias": bias,
        "use_rslora": use_rslora,
        "use_dora": use_dora,
        "lora_bias": lora_bias,
        "target_modules": targets.pattern if isinstance(targets, re.Pattern) else _plain(targets),
        "exclude_modules": _plain(exclude) or None,
        "modules_to_save": _plain(modules_to_save) or None,
        "layers_to_transform": [layers] if isinstance(layers, int) else list(layers) or None,
        "layers_pattern": [layers_pattern]
        if isinstance(layers_pattern, str)
        else list(layers_pattern) or None,
        "rank_pattern": dict(rank_pattern or {}),
        "alpha_pattern": dict(alpha_pattern or {}),
        "init_lora_weights": init,
    }
    fresh = _Fresh(model, config, _settings(config), parse_dtype(dtype), seed)
    match = match_adapter(model, fresh.content(), strict=True)
    report = AdapterReport(
        name=name,
        where="",
        format="fresh LoRA",
        trainable=True,
        modules=len(match.layers),
        ranks=dict(Counter(found.reading.term.rank for found in match.layers)),
        scales=dict(Counter(found.reading.term.scale for found in match.layers)),
        warnings=tuple(match.warnings),
        faults=tuple(match.faults),
    )
    if report.faults:
        refuse(report)
    check_owner(model, match)
    values = fresh.values(match, name)
    report.rows, report.nbytes = tuple(values.rows), fresh.nbytes
    attach_values(model, report, values, config)
    if merge_on_eval:
        follow_training(model)
    report.seconds = time.perf_counter() - start
    return report


def _plain(names: object) -> Any:
    """Return names as JSON types: a string, or a list of strings."""
    return (
        names
        if isinstance(names, str) or not isinstance(names, (list, tuple, set, frozenset))
        else list(names)
    )


def _settings(config: Mapping[str, Any]) -> PeftSettings:
    """Return the checked settings. Raises UsageError that names every wrong one."""
    try:
        # In a file these two may mean that the base was changed, or that tensors are missing; not here.
        settings = read_settings(
            {**config, "use_dora": False, "init_lora_weights": True}, "attach_lora", strict=True
        )
    except CorruptError as error:
        raise UsageError("these settings are not valid", where=error.where) from error
    targets, layers = config["target_modules"], config["layers_to_transform"]
    checks = {
        "r must be given": settings.r is not None,
        "dropout must be below 1": settings.dropout < 1,
        f"targets must be names of modules or a regular expression, not {targets!r}": bool(targets)
        and (isinstance(targets, str) or _are(targets, str)),
        f'init {config["init_lora_weights"]!r} is not done here: True, False or "gaussian" (the others of PEFT '
        "change the base too)": config["init_lora_weights"] in INITS,
        "layers are whole numbers, and narrow a list of names only": not layers
        or (not isinstance(targets, str) and _are(layers, int)),
    }
    faults = [fault for fault, holds in checks.items() if not holds]
    for pattern in (targets, config["exclude_modules"]):
        if isinstance(pattern, str):
            try:
                re.compile(pattern)
            except re.error as error:
                faults.append(f"{pattern!r} is no regular expression ({error})")
    if faults:
        raise UsageError("; ".join(faults), where="attach_lora")
    return settings


def _are(values: object, kind: type) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, kind) and not isinstance(value, bool) for value in values
    )


@dataclass
class _Fresh:
    """Plans a fresh adapter in the form of a file's content, and makes its values."""

    model: nn.Module
    config: Mapping[str, Any]
    settings: PeftSettings
    dtype: torch.dtype | None
    seed: int | None
    nbytes: int = 0

    def content(self) -> AdapterContent:
        """Return the layers and tensors that the settings ask for."""
        index = ModuleIndex(self.model)
        targets = targets_of(self.config)
        paths = targets.choose(self.model, index)
        loras: dict[int, LoraEntry] = {}
        for path in paths:
            module = index.modules[path]
            loras.setdefault(id(module), self._entry(path, module))
            if isinstance(module, nn.MultiheadAttention):
                loras.setdefault(id(module.out_proj), self._entry(f"{path}.out_proj", module.out_proj))
        idle = self.settings.idle_patterns(entry.path for entry in loras.values())
        if idle:
            raise UsageError(f"rank_pattern or alpha_pattern matches no targeted module: {listing(idle)}")
        return AdapterContent(
            format="fresh LoRA",
            loras=tuple(loras.values()),
            replaced=tuple(self._replaced(index, paths)),
            bias=self.settings.bias,
            whole_modules=self.settings.whole_modules,
        )

    def _entry(self, path: str, module: nn.Module) -> LoraEntry:
        clean = canonical(path)
        rank = self.settings.rank(clean) or 1
        kind = kind_of(module)
        shapes = {} if kind is None else kind.shapes(module, rank)
        entry = LoraEntry(
            path=clean,
            a=_ref(path, shapes.get("a", ())),
            b=_ref(path, shapes.get("b", ())),
            scaling=self.settings.scaling(clean),
            dropout=self.settings.dropout,
            stated_rank=rank,
        )
        if self.settings.lora_bias:
            entry = replace(entry, bias=_ref(path, shapes.get("bias", ())))
        if self.config["use_dora"]:
            entry = replace(entry, magnitude=_ref(path, shapes.get("magnitude", ())))
        return entry

    def _replaced(self, index: ModuleIndex, paths: Iterable[str]) -> Iterable[ReplacedEntry]:
        """Yield the tensors of modules_to_save, and the biases that train."""
        wanted: dict[tuple[int, str], tuple[str, bool]] = {}
        for path, module in index.modules.items():
            if path and any(path.endswith(name) for name in self.settings.whole_modules):
                for owner, attribute, _ in whole_tensors(path, module):
                    wanted.setdefault((id(index.modules[owner]), attribute), (owner, False))
        biased = {"none": (), "lora_only": paths, "all": index.modules}[self.settings.bias]
        seen: set[int] = set()
        for path in biased:
            bias = index.modules[path]._parameters.get("bias")
            if bias is not None and id(bias) not in seen:
                seen.add(id(bias))
                wanted.setdefault((id(index.modules[path]), "bias"), (path, True))
        for (_, attribute), (path, tied) in wanted.items():
            current = tensor_of(index.modules[path], attribute)
            if current is not None:
                ref = _ref(f"{path}.{attribute}", tuple(current.shape), CODES[current.dtype])
                yield ReplacedEntry(canonical(path), attribute, ref, tied=tied)

    def values(self, match: AdapterMatch, name: str) -> AdapterValues:
        """Make the parameters of a matched plan."""
        made = AdapterValues()
        generator = None
        for found in match.layers:
            base = found.layer._parameters.get(found.reading.term.attribute)
            device = torch.device("cpu") if base is None or base.is_meta else base.device
            if self.seed is not None and (generator is None or generator.device != device):
                generator = torch.Generator(device).manual_seed(self.seed)
            dtype = self.dtype or torch.float32
            if self.dtype is None and base is not None and base.is_floating_point():
                dtype = torch.promote_types(dtype, base.dtype)
            empty = {
                part: torch.zeros(shape, dtype=dtype, device=device)
                for part, shape in found.reading.shapes.items()
                if part in dict(found.entry.parts())
            }
            factors = initial_factors(
                found.reading.term, empty, base, self.config["init_lora_weights"], generator
            )
            made.layers.append(LayerValues(found, factors))
            made.rows += self._rows(found, factors, name)
        for replaced in match.replaced:
            current = tensor_of(replaced.module, replaced.entry.attribute)
            if current is not None:
                made.replaced.append((replaced, current.detach().clone()))
                self.nbytes += current.nbytes
                made.rows.append(
                    AdapterRow(
                        "", replaced.name, tuple(current.shape), replaced.entry.ref.dtype, note="a copy"
                    )
                )
        return made

    def _rows(self, found: LayerMatch, factors: Factors, name: str) -> Iterable[AdapterRow]:
        for place, tensor in (
            ("lora_A", factors.a),
            ("lora_B", factors.b),
            ("lora_magnitude_vector", factors.magnitude),
        ):
            if tensor is not None:
                self.nbytes += tensor.nbytes
                target = f"{found.path}.{place}.{name}.weight"
                yield AdapterRow(
                    "", target, tuple(tensor.shape), CODES[tensor.dtype], found.reading.term.scale
                )


def _ref(name: str, shape: tuple[int, ...], dtype: str = "F32") -> TensorRef:
    """Return a stand-in for a stored tensor, for the plan."""
    return TensorRef(name, dtype, shape, "", Span(0, 0))
