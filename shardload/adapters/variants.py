"""Settings of adapter_config.json that make an adapter more than plain LoRA, declined by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.adapters.adapter import listing
from shardload.adapters.adapter_report import shown
from shardload.adapters.patterns import is_risky
from shardload.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

_DECLINED: dict[str, str] = {
    "use_qalora": "QALoRA pools the input of A in groups",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "kasa_config": "KaSA truncates the base weights and puts a trained diagonal between A and B",
    "arrow_config": "Arrow routes between several adapters",
    "alora_invocation_tokens": "aLoRA is on only after its invocation tokens",
    "velora_config": "VeLoRA compresses activations in training",
    "monteclora_config": "MonteCLoRA samples its factors",
    "megatron_config": "the adapter is for Megatron's parallel layers",
    "ensure_weight_tying": "the adapter is shared between tied embeddings",
}
"""Settings that give the same keys another meaning: such a file must not be loaded as plain LoRA."""

_HARMLESS_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "true", "false"})


def decline_variants(
    config: Mapping[str, Any], special: Mapping[str, Any], label: str, *, strict: bool
) -> tuple[str, ...]:
    """Raise UnsupportedError that names every setting that this version does not support; return warnings.

    `special` are the settings that are on and that plain LoRA does not have.
    """
    reasons = [f"{key}: {why}" for key, why in _DECLINED.items() if key in special]
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in _HARMLESS_INITS and initial_of(config) is None:
        reasons.append(f"init_lora_weights = {shown(init)!r}: {_why_not(init.lower())}")
    # Only an expression that could run very long is refused; PEFT's own are names and short alternatives.
    reasons += [
        f"{field}: the pattern {shown(key[:80])!r} repeats too much to be matched safely"
        for field in ("rank_pattern", "alpha_pattern")
        for key in config.get(field) or ()
        if is_risky(key)
    ]
    unknown = [key for key, value in special.items() if key not in _DECLINED and value]
    if unknown and strict:
        reasons.append(
            f"unknown settings, perhaps of a newer PEFT: {listing(unknown)} (strict=False ignores them)"
        )
    if len(reasons) == 1 and unknown:
        raise UnsupportedError(
            "the adapter's config has settings that are not known, and might compute something else than plain LoRA",
            where=f"{label}: {reasons[0]}",
            cure="if they only steer the training, remove them from adapter_config.json, or pass strict=False to "
            "load_adapter",
        )
    if reasons:
        raise UnsupportedError(
            "the adapter is more than plain LoRA, and would be silently wrong as plain LoRA",
            where=f"{label}: " + "; ".join(reasons),
            cure="merge it into its base with PEFT, or convert it to plain LoRA "
            "(PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)), and load the result",
        )
    return (f"unknown settings were ignored: {listing(unknown)}",) if unknown else ()


def initial_of(config: Mapping[str, Any]) -> str | None:
    """Return the initialisation that changed the base weights, where it can be computed again from the base."""
    init = config.get("init_lora_weights")
    name = init.lower() if isinstance(init, str) else ""
    return name if name in {"pissa", "olora"} else None


def _why_not(init: str) -> str:
    if init.startswith("pissa_niter"):
        return "it changes the base weights by random numbers"
    if init in {"corda", "lora_ga"}:
        return "it changes the base weights by statistics of the training data"
    if init == "loftq":
        return "it replaces the base weights by those that bitsandbytes quantised on a GPU and converted back"
    return "such an initialisation changes the base weights too"
