"""`transformers.tokenization_utils_base`: names only, so that a repo's tokenizer file can be imported."""

from __future__ import annotations

from typing import Any

from shardload.remote_code.shim._missing import later_class
from shardload.remote_code.shim.utils.generic import ExplicitEnum, PaddingStrategy, TensorType

__all__ = [
    "AddedToken",
    "BatchEncoding",
    "EncodedInput",
    "PaddingStrategy",
    "PreTokenizedInput",
    "PreTrainedTokenizerBase",
    "SpecialTokensMixin",
    "TensorType",
    "TextInput",
    "TruncationStrategy",
]

TextInput = str
PreTokenizedInput = list[str]
EncodedInput = list[int]
TextInputPair = tuple[str, str]

AddedToken: Any = later_class("AddedToken", __name__)
BatchEncoding: Any = later_class("BatchEncoding", __name__)
SpecialTokensMixin: Any = later_class("SpecialTokensMixin", __name__)
PreTrainedTokenizerBase: Any = later_class("PreTrainedTokenizerBase", __name__)


class TruncationStrategy(ExplicitEnum):
    """How a pair of sequences that is too long is cut."""

    ONLY_FIRST = "only_first"
    ONLY_SECOND = "only_second"
    LONGEST_FIRST = "longest_first"
    DO_NOT_TRUNCATE = "do_not_truncate"
