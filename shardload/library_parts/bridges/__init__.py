"""Bridges: names in the newer spelling of transformers, made of the stand-in's classes or of the library's files.

Code that says `PreTrainedConfig` is written for transformers 5; the stand-in, which is of 4, has `PretrainedConfig`.
"""

from __future__ import annotations

import importlib
from typing import Any

_HERE = "shardload.library_parts.bridges"

# Asked for by code in the newer spelling only, so that a repo may ask for it as well. "()": call it for the answer.
_NEW = {
    "PreTrainedConfig": "config_base.config_base()",
    "SubConfigSpec": "config_base.SubConfigSpec",
    "remap_legacy_layer_types": "config_base.remap_legacy_layer_types",
    "slice_logits_to_keep": "small_names.slice_logits_to_keep",
    "torch_compilable_check": "small_names.torch_compilable_check",
}
# A file of the library means another thing by it than code for transformers 4.
_FOR_PARTS = {
    **_NEW,
    "TransformGetItemToIndex": "small_names.TransformGetItemToIndex",
    "strict": "config_base.strict",
    "as_validated_field": "config_base.as_validated_field",
    "PreTrainedModel": "model_base.PreTrainedModel",
    "PreTrainedAudioTokenizerBase": "model_base.PreTrainedAudioTokenizerBase",
    "ALL_ATTENTION_FUNCTIONS": "attention.all_attention_functions()",
    "DynamicCache": "caches.dynamic_cache()",
    "AttentionInterface": "attention.AttentionInterface",
    "get_torch_context_manager_or_global_device": "small_names.get_torch_context_manager_or_global_device",
    "is_torchdynamo_exporting": "small_names.is_torchdynamo_exporting",
    "is_tracing": "small_names.is_tracing",
    "is_torch_less_or_equal": "small_names.is_torch_less_or_equal",
    "is_grouped_mm_available": "small_names.is_grouped_mm_available",
    "force_accelerate_hooks": "small_names.unchanged",
    "GradientCheckpointingLayer": "gradient_checkpointing.layer()",
    "requires": "small_names.unchanged",
    "use_kernel_func_from_hub_with_fallback": "small_names.use_kernel_func_from_hub_with_fallback",
}


def for_part(module: str, name: str) -> Any:
    """Return the bridge for a name that a file of the library asks for; None without one."""
    return _made(_FOR_PARTS, module, name)


def for_repo(module: str, name: str) -> Any:
    """Return the bridge for a name that a repo's code asks for; None without one."""
    return _made(_NEW, module, name)


def _made(table: dict[str, str], module: str, name: str) -> Any:
    if module in ("", "models.auto") or module.startswith("models.auto."):
        from shardload.library_parts.auto_tables import auto_name

        found = auto_name(name)
        if found is not None:
            return found
    if module == "huggingface_hub.dataclasses" and name not in table:
        return getattr(importlib.import_module(module), name)
    if name not in table:
        return None
    home, _, own = table[name].partition(".")
    found = getattr(importlib.import_module(f"{_HERE}.{home}"), own.removesuffix("()"))
    return found() if own.endswith("()") else found
