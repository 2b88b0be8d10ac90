"""`transformers.tokenization_utils`: names only, so that a repo's tokenizer file can be imported."""

from __future__ import annotations

from typing import Any

from shardload.remote_code.shim._missing import later_class
from shardload.remote_code.shim.tokenization_utils_base import (
    AddedToken,
    BatchEncoding,
    EncodedInput,
    PaddingStrategy,
)

__all__ = ["AddedToken", "BatchEncoding", "EncodedInput", "PaddingStrategy", "PreTrainedTokenizer"]

PreTrainedTokenizer: Any = later_class("PreTrainedTokenizer", __name__)
