"""Adapter files of other tools and methods, recognised by their keys and declined by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shardload.errors import Wording

if TYPE_CHECKING:
    from collections.abc import Collection

_FOREIGN: tuple[tuple[str, str], ...] = (
    (r"(lora_unet_|lora_te\d?_|lycoris_).*", "kohya (sd-scripts)"),
    (r".*\.lora_(down|up)\.weight", "kohya (sd-scripts)"),
    (r".*\.lora\.(down|up)\.weight|.*lora_linear_layer\.(down|up)\.weight", "diffusers"),
    (r".*\.(hada_w[12]_[ab]|lokr_w[12](_[ab])?|oft_blocks|dora_scale)", "LyCORIS"),
    (r".*\.lora_E(\..+)?", "AdaLoRA"),
    (r".*\.(vera_lambda_[bd]|ia3_l|ln_tuning_layers|hra_u|fourierft_spectrum)(\..+)?", "another PEFT method"),
    (r".*\.(oft_[rR]|boft_[RS])(\..+)?", "another PEFT method"),
    (r"prompt_embeddings|.*\.adaption_(prompt|gate)", "prompt tuning"),
    (r"(.*\.)?prefix_encoder\..*", "P-Tuning v2 (a prefix encoder)"),
)  # fmt: skip

_CONVERT = "convert it to PEFT's format (adapter_model.safetensors with adapter_config.json)"
_CURES = {
    "AdaLoRA": "merge it into its base with PEFT and load the result",
    "another PEFT method": "merge it into its base with PEFT and load the result",
    "prompt tuning": "run it with PEFT: it adds to the input, and there is no weight to merge it into",
}


def foreign_style(keys: Collection[str]) -> tuple[str, str] | None:
    """Return the tool that writes such keys and the first such key, or None when none is recognised."""
    for pattern, tool in _FOREIGN:
        match = re.compile(pattern)
        for key in keys:
            if match.fullmatch(key):
                return tool, key
    return None


def cure_of(tool: str, place: str) -> str:
    """Return what to do with a file of such a tool at such a place."""
    if tool.startswith("P-Tuning"):
        return Wording(
            "it is a part of the model: load the base by from_pretrained with {prefix}", prefix=place
        )
    return _CURES.get(tool, _CONVERT)
