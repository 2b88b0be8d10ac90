"""Tiny configs for transformers' model types: known sizes are shrunk by their names, nested configs too."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

from scripts.architectures.fixes import FIXES

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PARAMETERS = 40_000_000

HEADS_FIRST = (
    "IMAGE_TEXT_TO_TEXT",
    "SPEECH_SEQ_2_SEQ",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "MASKED_LM",
    "CAUSAL_LM",
    "MULTIMODAL_LM",
    "CTC",
    "OBJECT_DETECTION",
    "ZERO_SHOT_OBJECT_DETECTION",
    "UNIVERSAL_SEGMENTATION",
    "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "IMAGE_CLASSIFICATION",
)
"""Heads that are tried before the other ones, as they are part of most published checkpoints."""

# The first pattern that is found in a name decides; a size is never made larger than it is.
SIZES = (
    (r"codebook_size|num_embeddings$", 64),
    (r"vocab", 100),
    (r"upsample_groups", 64),
    (r"per_tok|(?<!index_)top_?k$|^moe_k$|topk_group|num_selected", 2),
    (r"n_groups?$|num_expert_groups", 2),
    (r"num_(local_|routed_|moe_)?experts$|n_routed_experts|moe_num_experts|zero_expert_num", 4),
    (r"kv_heads|key_value_heads|num_key_value|num_kv", 2),
    (r"heads?$|heads_", 4),
    (r"head_dim|dim_head|d_head|key_dim|d_kv$|kv_channels|rotary_dim", 16),
    (r"first_k_dense|num_dense_layers", 1),
    (r"lora_rank|gated_norm_rank", 16),
    (r"image_size|img_size|input_size|^resolution$|max_image_size", 64),
    (r"patch_size", 16),
    (r"intermediate|ffn|ff_|feed_?forward|mlp_|d_ff|d_inner|n_inner|linear_units|inner_size", 128),
    (r"num_hidden_groups|inner_group_num", 1),
    (r"layers?$|^n_layer$|num_blocks|depths?$|num_stages_of|hidden_layers", 2),
    (
        r"max_.*position|n_positions|n_ctx|seq_len|context_length|max_source|max_target|position_embeddings",
        128,
    ),
    (r"state_size|ssm_state|d_state", 8),
    (
        r"hidden|d_model|n_embd|embed|width|units|channels|filters|features|dim$|_dim_|dims$|_size$|d_latents",
        64,
    ),
)
TOKEN = re.compile(
    r"(token|pad|bos|eos|_start|_end|patch|boa|eoa|boi|eoi)_?(id|index|idx)s?$|token_ids$|^(sep|bos|eos)_"
)
LISTS_OF_LAYERS = re.compile(r"depths|layers|blocks|stage_num|num_block|repeats")


def classes_of(model_type: str) -> Iterator[str]:
    """Yield the names of the classes that transformers' mappings give for a model type, best known heads first."""
    from transformers.models.auto import modeling_auto

    first = [f"MODEL_FOR_{head}_MAPPING_NAMES" for head in HEADS_FIRST]
    rest = [name for name in dir(modeling_auto) if re.fullmatch(r"MODEL_FOR_\w+_MAPPING_NAMES", name)]
    backbone = "MODEL_FOR_BACKBONE_MAPPING_NAMES"
    rest.remove(backbone)
    seen = set()
    for mapping in dict.fromkeys([*first, *rest, "MODEL_MAPPING_NAMES", backbone]):
        names = getattr(modeling_auto, mapping, {}).get(model_type, ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in seen:
                seen.add(name)
                yield name


def model_types(parts: bool = False) -> list[str]:
    """Return every model type for which some mapping of transformers names a class.

    A type that is a part of another type of the same module (`qwen2_vl_text`) is left out unless `parts` is set.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    found = [name for name in CONFIG_MAPPING_NAMES if next(classes_of(name), None)]
    if parts:
        return found
    inside = set()
    for name in found:
        cls = CONFIG_MAPPING[name]
        inside |= {
            part.model_type
            for part in cls.sub_configs.values()
            if part.__module__ == cls.__module__ and part is not cls
        }
    return [name for name in found if name not in inside]


def tiny_configs(model_type: str) -> Iterator[Any]:
    """Yield configs of a type, from the smallest to the one that is the most like the default."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    cls = CONFIG_MAPPING[model_type]
    for derived in (False, True):
        ids = iter(range(99, 20, -1))
        yield cls(**small(_default(cls), ids, derived, {}))


def _default(cls: Any) -> Any:
    try:
        return cls()
    except Exception:  # noqa: BLE001 - some configs refuse their own defaults
        return cls(**FIXES.get(cls.model_type, {}))


def small(default: Any, ids: Iterator[int], derived: bool, fix: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that make a config like `default`, but tiny.

    `derived` sets those that default to None too. `fix` is what the config around it says, and has the last word.
    """
    cls = type(default)
    fix = FIXES.get(cls.model_type, {}) | fix
    found: dict[str, Any] = {}
    layers = _kinds_of_layers(default)
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name == "self" or parameter.kind is parameter.VAR_KEYWORD:
            continue
        value = _value(default, name, parameter.default)
        if hasattr(value, "to_dict"):
            found[name] = _small_part(value, ids, derived, fix.get(name, {}))
        elif parameter.default is not None or derived or TOKEN.search(name):
            less = shrunk(name, value, ids)
            if isinstance(less, list | tuple) and len(less) == _value(default, "num_hidden_layers", 0) > 4:
                less = less[: layers.get("num_hidden_layers", 2)]  # one for each layer, not for each stage
            if less != value:
                found[name] = less
    fix = {name: value for name, value in fix.items() if not hasattr(found.get(name), "to_dict")}
    return found | layers | _stages(default) | _widths_of_stages(default) | fix


def _value(config: Any, name: str, otherwise: Any) -> Any:
    """Return a setting; one that differs between the layers raises an error of its own, not an AttributeError."""
    try:
        return getattr(config, name, otherwise)
    except Exception:  # noqa: BLE001
        return otherwise


def _kinds_of_layers(default: Any) -> dict[str, Any]:
    """Return as many layers as it takes to have one of each kind, and equal numbers of heads where they are equal."""
    found = {}
    kinds = _value(default, "layer_types", None)
    of_layers = isinstance(kinds, list | tuple) and len(kinds) == _value(default, "num_hidden_layers", 0)
    if of_layers and all(isinstance(kind, str) for kind in kinds):
        enough = 1 + max(kinds.index(kind) for kind in set(kinds))
        found["num_hidden_layers"] = enough if 2 < enough <= 6 else 2
    heads, shared = (_value(default, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and heads == shared:
        found["num_key_value_heads"] = min(heads, 4)
    return found


def _stages(default: Any) -> dict[str, Any]:
    """Return the settings of a backbone whose features come from layers that a tiny one lacks."""
    features = _value(default, "out_features", None)
    if not features or not all(re.fullmatch(r"stage\d+", str(one)) for one in features):
        return {}
    if isinstance(_value(default, "depths", None), list | tuple):
        return {}
    layers = max(2, len(features))
    return {
        "num_hidden_layers": layers,
        "out_features": [f"stage{layers - len(features) + 1 + at}" for at in range(len(features))],
    }


def _widths_of_stages(default: Any) -> dict[str, Any]:
    """Return the first width of a model that doubles it at each stage: heads are listed a stage, and divide it."""
    width = _value(default, "embed_dim", None)
    heads = _value(default, "num_heads", None)
    if isinstance(heads, list | tuple) and isinstance(width, int):
        return {"embed_dim": width // 4}
    return {}


def _small_part(part: Any, ids: Iterator[int], derived: bool, fix: dict[str, Any]) -> Any:
    if part.model_type == "timm_backbone":
        from transformers import ResNetConfig

        return ResNetConfig(
            embedding_size=16,
            hidden_sizes=[16, 16, 32, 64],
            depths=[1, 1, 1, 1],
            out_features=["stage2", "stage3", "stage4"],
        )
    kept = {name: getattr(part, name) for name in ("out_features",) if getattr(part, name, None)}
    return type(part)(**kept | small(part, ids, derived, fix))


def shrunk(name: str, value: Any, ids: Iterator[int]) -> Any:
    """Return a small value for a setting of this name, or the value itself."""
    if isinstance(value, dict):
        return _shrunk_rope(value)
    if isinstance(value, list | tuple):
        return _shrunk_list(name, value, ids)
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if TOKEN.search(name):
        return next(ids) if value >= 100 else value
    return min(value, next((size for pattern, size in SIZES if re.search(pattern, name)), value))


def _shrunk_list(name: str, value: Any, ids: Iterator[int]) -> Any:
    if not value or not all(type(one) is int for one in value):
        return value
    if TOKEN.search(name):
        return type(value)(next(ids) if one >= 100 else one for one in value)
    if LISTS_OF_LAYERS.search(name):
        return type(value)(min(one, 1) for one in value)
    if re.search("image_size|img_size", name):
        return type(value)(min(one, 64) for one in value)
    by = 8
    while by > 1 and any(one % by for one in value):
        by //= 2
    return type(value)(one // by for one in value) if max(value) > 64 else value


def _shrunk_rope(value: dict[str, Any]) -> dict[str, Any]:
    """Return the same rope with sections that fit heads of 16 (half of a head is 8 frequencies)."""
    if "mrope_section" in value:
        return value | {"mrope_section": [2, 3, 3]}
    return {key: _shrunk_rope(one) if isinstance(one, dict) else one for key, one in value.items()}
