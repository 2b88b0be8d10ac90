"""What the loader may use of the stand-in, besides the modules of transformers themselves."""

from __future__ import annotations

from shardload.transformers_shim._filled import offered
from shardload.transformers_shim._index import has_module
from shardload.transformers_shim._missing import is_lacking, with_choices
from shardload.transformers_shim._module import Answer, guarded_lines, import_for, kind_of_answer
from shardload.transformers_shim._special_tokens import ATTRIBUTES as SPECIAL_TOKENS
from shardload.transformers_shim._special_tokens import AddedToken, as_token

__all__ = [
    "SPECIAL_TOKENS",
    "AddedToken",
    "Answer",
    "as_token",
    "guarded_lines",
    "has_module",
    "import_for",
    "is_lacking",
    "kind_of_answer",
    "offered",
    "with_choices",
]
