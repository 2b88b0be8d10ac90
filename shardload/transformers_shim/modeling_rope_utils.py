"""`transformers.modeling_rope_utils`: inverse frequencies of rotary embeddings, by the config's `rope_type`.

Each function takes (config, device, seq_len) and returns (inverse frequencies (rotated size / 2,) in float32, the
factor on cosine and sine). `config.rope_scaling` is read as in config.json, where `type` means `rope_type`.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch

from shardload.transformers_shim._missing import later, refuse_unknown

if TYPE_CHECKING:
    from collections.abc import Callable

Frequencies = tuple[torch.Tensor, float]
_SETTINGS = frozenset(
    {
        "attention_factor", "base", "beta_fast", "beta_slow", "dim", "factor", "high_freq_factor", "long_factor",
        "low_freq_factor", "max_position_embeddings", "mscale", "mscale_all_dim", "original_max_position_embeddings",
        "partial_rotary_factor", "rope_theta", "rope_type", "short_factor", "truncate", "type",
    }
)  # fmt: skip


def _size_and_base(config: Any, given: dict[str, Any]) -> tuple[int, float]:
    """Return (the number of rotated features, the base); the first releases passed both as keywords."""
    settings = _settings(config, given)
    if "dim" in given:
        return int(given["dim"]), float(given["base"])
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    part = settings.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", 1.0))
    return int(size * part), float(settings.get("rope_theta", getattr(config, "rope_theta", 10000.0)))


def _settings(config: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the config, or those of one kind of layer, with the keywords on top of them."""
    found = getattr(config, "rope_scaling", None) or getattr(config, "rope_parameters", None) or {}
    given = dict(given)
    kind = given.pop("layer_type", None)
    refuse_unknown("ROPE_INIT_FUNCTIONS", given, _SETTINGS)
    return {**(found if kind is None else found[kind]), **given}


def _original_length(config: Any, settings: dict[str, Any]) -> int:
    stated = settings.get("original_max_position_embeddings")
    stated = stated or getattr(config, "original_max_position_embeddings", None)
    return int(stated or config.max_position_embeddings)


def _plain(size: int, base: float, device: Any) -> torch.Tensor:
    steps = torch.arange(0, size, 2, dtype=torch.int64).to(device=device, dtype=torch.float) / size
    return 1.0 / (base**steps)


def _compute_default_rope_parameters(
    config: Any = None, device: Any = None, seq_len: int | None = None, **rope_kwargs: Any
) -> Frequencies:
    """Return the frequencies without scaling."""
    del seq_len
    return _plain(*_size_and_base(config, rope_kwargs), device), 1.0


def _compute_linear_scaling_rope_parameters(
    config: Any = None, device: Any = None, seq_len: int | None = None, **rope_kwargs: Any
) -> Frequencies:
    """Return the frequencies divided by `factor`."""
    frequencies, scale = _compute_default_rope_parameters(config, device, seq_len, **rope_kwargs)
    return frequencies / _settings(config, rope_kwargs)["factor"], scale


def _compute_dynamic_ntk_parameters(
    config: Any = None, device: Any = None, seq_len: int | None = None, **rope_kwargs: Any
) -> Frequencies:
    """Return the frequencies of a base that grows with sequences longer than those of the training."""
    size, base = _size_and_base(config, rope_kwargs)
    factor = _settings(config, rope_kwargs)["factor"]
    trained = rope_kwargs.get("max_position_embeddings") or config.max_position_embeddings
    length = trained if seq_len is None else max(int(seq_len), trained)
    base *= ((factor * length / trained) - (factor - 1)) ** (size / (size - 2))
    return _plain(size, base, device), 1.0


def _compute_yarn_parameters(
    config: Any, device: Any = None, seq_len: int | None = None, **rope_kwargs: Any
) -> Frequencies:
    """Return the frequencies with slow ones divided by `factor`, fast ones kept, and a ramp in between."""
    del seq_len
    size, base = _size_and_base(config, rope_kwargs)
    settings = _settings(config, rope_kwargs)
    original = _original_length(config, settings)
    factor = settings.get("factor") or config.max_position_embeddings / original
    kept = _plain(size, base, device)

    def place(turns: float) -> float:
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = place(settings.get("beta_fast") or 32), place(settings.get("beta_slow") or 1)
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high += 0.001 * (low == high)
    ramp = ((torch.arange(size // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    fast = 1 - ramp.to(device=device, dtype=torch.float)
    return kept / factor * (1 - fast) + kept * fast, _yarn_scale(settings, factor)


def _yarn_scale(settings: dict[str, Any], factor: float) -> float:
    def grown(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if settings.get("attention_factor") is not None:
        return float(settings["attention_factor"])
    if settings.get("mscale") and settings.get("mscale_all_dim"):
        return grown(settings["mscale"]) / grown(settings["mscale_all_dim"])
    return grown(1.0)


def _compute_longrope_parameters(
    config: Any, device: Any = None, seq_len: int | None = None, **rope_kwargs: Any
) -> Frequencies:
    """Return the frequencies divided by `long_factor` past the original length, else by `short_factor`."""
    size, base = _size_and_base(config, rope_kwargs)
    settings = _settings(config, rope_kwargs)
    original = _original_length(config, settings)
    stated = settings.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None
    )
    factor = config.max_position_embeddings / original if stated else settings.get("factor") or 1.0
    scale = settings.get("attention_factor")
    if scale is None:
        scale = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))
    name = "long_factor" if seq_len and seq_len > original else "short_factor"
    divisors = torch.tensor(settings[name], dtype=torch.float32, device=device)
    steps = torch.arange(0, size, 2, dtype=torch.int64, device=device).float() / size
    return 1.0 / (divisors * base**steps), float(scale)


def _compute_banded_parameters(
    config: Any, device: Any = None, seq_len: int | None = None, **rope_kwargs: Any
) -> Frequencies:
    """Return the frequencies with long waves divided by `factor`, short ones kept, and those in between mixed."""
    frequencies, scale = _compute_default_rope_parameters(config, device, seq_len, **rope_kwargs)
    settings = _settings(config, rope_kwargs)
    factor, original = settings["factor"], settings["original_max_position_embeddings"]
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    wave = 2 * math.pi / frequencies
    mixed = (original / wave - low) / (high - low)
    between = (1 - mixed) * frequencies / factor + mixed * frequencies
    slow = torch.where(wave > original / low, frequencies / factor, between)
    return torch.where(wave < original / high, frequencies, slow), scale


ROPE_INIT_FUNCTIONS: dict[str, Callable[..., Frequencies]] = {
    "default": _compute_default_rope_parameters,
    "linear": _compute_linear_scaling_rope_parameters,
    "dynamic": _compute_dynamic_ntk_parameters,
    "yarn": _compute_yarn_parameters,
    "longrope": _compute_longrope_parameters,
    "su": _compute_longrope_parameters,
    "llama3": _compute_banded_parameters,  # config.json's name for it, in every model
}


def dynamic_rope_update(rope_forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the forward of a rotary embedding whose frequencies depend on the sequence's length."""

    @functools.wraps(rope_forward)
    def forward(self: Any, x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.rope_type, dict):  # one kind of rotary embedding for each kind of layer
            kind = kwargs.get("layer_type", args[0] if args else None)
            if self.rope_type[kind] in ("dynamic", "longrope", "su"):
                later(f"rope_type={self.rope_type[kind]!r} for one kind of layer ({kind})")
        elif "dynamic" in self.rope_type:
            _follow_growth(self, int(position_ids.max()) + 1, x.device)
        elif self.rope_type in ("longrope", "su"):
            length = int(position_ids.max()) + 1
            _use(self, ROPE_INIT_FUNCTIONS[self.rope_type](self.config, x.device, seq_len=length)[0])
        return rope_forward(self, x, position_ids, *args, **kwargs)

    return forward


def _follow_growth(module: Any, length: int, device: torch.device) -> None:
    if length > module.max_seq_len_cached:
        frequencies, module.attention_scaling = ROPE_INIT_FUNCTIONS[module.rope_type](
            module.config, device, seq_len=length
        )
        _use(module, frequencies)
        module.max_seq_len_cached = length
    elif length < module.original_max_seq_len < module.max_seq_len_cached:
        _use(module, module.original_inv_freq.to(device))
        module.max_seq_len_cached = module.original_max_seq_len


def _use(module: Any, frequencies: torch.Tensor) -> None:
    module.register_buffer("inv_freq", frequencies, persistent=False)


def rope_config_validation(config: Any, ignore_keys: set[str] | None = None) -> None:
    """Raise KeyError where `rope_scaling` is there without a kind of rotary embedding."""
    del ignore_keys
    settings = getattr(config, "rope_scaling", None)
    if settings is not None and not {"rope_type", "type"} & settings.keys():
        raise KeyError("rope_scaling has neither rope_type nor type")
