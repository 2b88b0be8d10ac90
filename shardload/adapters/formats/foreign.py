"""Adapter files of other tools and methods, recognised by their keys and declined by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

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
)  # fmt: skip


def foreign_style(keys: Collection[str]) -> tuple[str, str] | None:
    """Return the tool that writes such keys and the first such key, or None when none is recognised."""
    for pattern, tool in _FOREIGN:
        match = re.compile(pattern)
        for key in keys:
            if match.fullmatch(key):
                return tool, key
    return None
