"""Quantisation: into what the weights of a load are quantised, and which modules are left alone.

The options are those of transformers' BitsAndBytesConfig, by which the field asks for bitsandbytes. They are read by
their names from any object or mapping, as they stand in config.json too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload.dtypes import parse_dtype
from shardload.errors import UnsupportedError, UsageError, Wording
from shardload.model.shell import modules_of
from shardload.placement.quantisers import is_installed

if TYPE_CHECKING:
    from collections.abc import Iterable

_METHOD = "bitsandbytes"
STATE = "quant_state.bitsandbytes__"
"""The part of a weight of 4 bits that holds the settings; the kind follows."""


@dataclass(frozen=True)
class Quantisation:
    """What bitsandbytes makes of weights: `kind` is "int8", "nf4" or "fp4".

    `skip` are names of modules that are left alone; None leaves the output layer alone. Inputs above `threshold` are
    computed in float16 (int8). `compute_dtype`, `nested` (scales are quantised too) and `storage` are for four bits.
    """

    kind: str
    skip: tuple[str, ...] | None = None
    threshold: float = 6.0
    compute_dtype: torch.dtype = torch.float32
    nested: bool = False
    storage: torch.dtype = torch.uint8

    @classmethod
    def of(cls, config: Any = None, load_in_8bit: bool = False, load_in_4bit: bool = False) -> Quantisation:
        """Return what a caller asks for. Raises UsageError, UnsupportedError."""
        if isinstance(config, cls):
            return config
        if load_in_8bit and load_in_4bit:
            both = {"load_in_8bit": True, "load_in_4bit": True}
            raise UsageError(
                Wording("{load_in_8bit} and {load_in_4bit} exclude each other", **both),
                cure=Wording("pass one of {load_in_8bit} and {load_in_4bit}", **both),
            )
        if config is None:
            config = {"load_in_8bit": load_in_8bit, "load_in_4bit": load_in_4bit}
        elif load_in_8bit or load_in_4bit:
            raise UsageError(
                Wording("{quantization_config} says what to quantise to already", quantization_config=...),
                cure=Wording(
                    "leave {load_in_8bit} and {load_in_4bit} out", load_in_8bit=..., load_in_4bit=...
                ),
            )
        return cls._read(_Options(config))

    @classmethod
    def stored(cls, config: Mapping[str, Any] | None) -> Quantisation | None:
        """Return how bitsandbytes quantised the weights of a checkpoint, as its config.json says.

        None for another quantiser, and where bitsandbytes is not installed to take them.
        """
        told = (config or {}).get("quantization_config")
        if not isinstance(told, Mapping) or told.get("quant_method", _METHOD) != _METHOD:
            return None
        options = _Options(told)
        return cls._read(options) if options.asks and is_installed(_METHOD) else None

    def takes(self, stored: Iterable[str]) -> bool:
        """Whether some of these names are those of weights that bitsandbytes packed to this kind."""
        end = ".SCB" if self.kind == "int8" else f".{STATE}{self.kind}"
        return any(name.endswith(end) for name in stored)

    @classmethod
    def _read(cls, options: _Options) -> Quantisation:
        options.require_known()
        eight, four = bool(options["load_in_8bit"]), bool(options["load_in_4bit"])
        if eight == four:
            raise UsageError(
                Wording(
                    "{0} asks for {1}", options.name, "8 and 4 bits" if eight else "neither 8 nor 4 bits"
                ),
                cure="set one of load_in_8bit and load_in_4bit",
            )
        kind = "int8" if eight else str(options["bnb_4bit_quant_type"] or "fp4")
        if kind not in ("int8", "nf4", "fp4"):
            raise UsageError(f"bnb_4bit_quant_type is {kind!r}", cure='set it to "nf4" or "fp4"')
        skip, threshold = options["llm_int8_skip_modules"], options["llm_int8_threshold"]
        return cls(
            kind,
            None if skip is None else tuple(map(str, skip)),
            6.0 if threshold is None else float(threshold),
            _dtype(options["bnb_4bit_compute_dtype"], torch.float32),
            bool(options["bnb_4bit_use_double_quant"]),
            _dtype(options["bnb_4bit_quant_storage"], torch.uint8),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the options as config.json has them."""
        return {
            "quant_method": _METHOD,
            "load_in_8bit": self.kind == "int8",
            "load_in_4bit": self.kind != "int8",
            "llm_int8_threshold": self.threshold,
            "llm_int8_skip_modules": None if self.skip is None else list(self.skip),
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
            "bnb_4bit_quant_type": "fp4" if self.kind == "int8" else self.kind,
            "bnb_4bit_use_double_quant": self.nested,
            "bnb_4bit_compute_dtype": str(self.compute_dtype).removeprefix("torch."),
            "bnb_4bit_quant_storage": str(self.storage).removeprefix("torch."),
        }

    def as_done(self, model: nn.Module, package: Any) -> Quantisation:
        """Return the options by which a reader finds just the modules of a model quantised that are.

        transformers chooses by other rules what it leaves alone without names, and where there are some it tries tied
        weights: each layer that is plain here is named. `package` holds bitsandbytes' modules.
        """
        made = (package.Linear8bitLt, package.Linear4bit)
        modules = dict(model.named_modules())
        quantised = {name for name, each in modules.items() if isinstance(each, made)}
        plain = [name for name, each in modules.items() if isinstance(each, nn.Linear) or is_turned(each)]
        left = [name for name in plain if name not in quantised and not is_skipped(name, self.skip or ())]
        exact = (
            rf"^{re.escape(name)}$" if any(is_skipped(each, [name]) for each in quantised) else name
            for name in left
        )
        return replace(self, skip=(*(self.skip or ()), *exact)) if left else self

    def chosen(self, model: nn.Module) -> dict[str, nn.Linear]:
        """Return the modules to quantise by path; bitsandbytes takes transformers' Conv1D too, turned."""
        return linears_to_quantise(model, self.skip, turned=True)


def linears_to_quantise(
    model: nn.Module, skip: Iterable[str] | None, *, turned: bool = False
) -> dict[str, nn.Linear]:
    """Return every nn.Linear by path but those that are tied or left alone; `turned`: with every Conv1D.

    Without `skip` the model's output layer is left alone, and the module of its last parameter; always the modules
    that the class keeps in float32.
    """
    kept = [*(getattr(model, "_keep_in_fp32_modules", None) or ())]
    kept += _outputs(model) if skip is None else skip
    return {name: each for name, each in linears(model, turned=turned).items() if not is_skipped(name, kept)}


def is_turned(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D, or the stand-in's: a linear layer whose weight is (in, out)."""
    return any(each.__name__ == "Conv1D" and not issubclass(each, nn.Conv1d) for each in type(module).__mro__)


def sizes_of(module: nn.Module) -> tuple[int, int]:
    """Return the outputs and the inputs of a linear layer."""
    weight: Any = module._parameters["weight"]
    if is_turned(module):
        return weight.shape[1], weight.shape[0]
    linear: Any = module
    return linear.out_features, linear.in_features


def linears(model: nn.Module, *, turned: bool = False) -> dict[str, nn.Linear]:
    """Return every plain nn.Linear by path, but those whose weight has a second name; `turned`: every Conv1D too."""
    modules: list[tuple[str, Any]] = list(modules_of(model))
    names = Counter(id(each) for _, module in modules for each in module._parameters.values())
    return {
        path[:-1]: module
        for path, module in modules
        if (type(module) is nn.Linear or (turned and is_turned(module)))
        and path
        and module.weight.numel()
        and names[id(module.weight)] == 1
    }


def is_skipped(name: str, patterns: Iterable[str]) -> bool:
    """Whether a module is meant: by the end of its name, or by a regular expression for its first segments."""
    return any(name.endswith(each) or _first_segments(each).match(name) for each in patterns)


def _first_segments(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(?:{pattern})(?:(?<=\.)|\.|$)")
    except re.error:
        return re.compile(rf"{re.escape(pattern)}(?:\.|$)")


def _outputs(model: nn.Module) -> set[str]:
    """Return the paths of the output layer and of the module that has the model's last parameter."""
    found = {name.rpartition(".")[0] for name in list(dict(model.named_parameters()))[-1:]}
    ask = getattr(model, "get_output_embeddings", None)
    output = ask() if callable(ask) else None
    return {*found, *(name for name, each in model.named_modules() if each is output)} - {""}


class _Options:
    """The options of a quantiser's config, by name: attributes of an object, or entries of a mapping."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self.name = "quantization_config" if isinstance(config, Mapping) else type(config).__name__

    def __getitem__(self, name: str) -> Any:
        if isinstance(self._config, Mapping):
            return self._config.get(name)
        return getattr(self._config, name, None)

    @property
    def asks(self) -> bool:
        """Whether the config asks for either width."""
        return bool(self["load_in_8bit"]) != bool(self["load_in_4bit"])

    def require_known(self) -> None:
        """Raise UnsupportedError for another quantiser, or for an option that is not done."""
        told = self["quant_method"]
        method = str(getattr(told, "value", told or _METHOD))
        if method != _METHOD or (self["load_in_8bit"] is None and self["load_in_4bit"] is None):
            raise UnsupportedError(
                f"{self.name} is for {method if told else 'another quantiser'}, "
                "and weights are quantised by bitsandbytes or torchao",
                cure=Wording(
                    "pass {load_in_8bit}, transformers' BitsAndBytesConfig, or a configuration of torchao",
                    load_in_8bit=True,
                ),
                code="E-QUANT",
            )
        for name in ("llm_int8_has_fp16_weight", "llm_int8_enable_fp32_cpu_offload"):
            if self[name]:
                raise UnsupportedError(f"{name}=True is not done", cure="leave it out", code="E-QUANT")


def _dtype(told: object, default: torch.dtype) -> torch.dtype:
    if told is None or isinstance(told, torch.dtype):
        return told or default
    found = getattr(torch, str(told).removeprefix("torch."), None)
    return found if isinstance(found, torch.dtype) else parse_dtype(str(told)) or default
