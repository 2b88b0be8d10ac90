"""`transformers.tokenization_utils_fast`: the name only, so that a repo's tokenizer file can be imported."""

from __future__ import annotations

from typing import Any

from shardload.remote_code.shim._missing import later_class

PreTrainedTokenizerFast: Any = later_class("PreTrainedTokenizerFast", __name__)
