"""What the loader may use of the stand-in, besides the modules of transformers themselves."""

from __future__ import annotations

from shardload.transformers_shim._callers import unpacks_two
from shardload.transformers_shim._filled import offered
from shardload.transformers_shim._index import has_module, has_name
from shardload.transformers_shim._missing import is_lacking, with_choices
from shardload.transformers_shim._module import (
    Answer,
    answer,
    guarded_lines,
    import_for,
    kind_of_answer,
    known,
    looked_up,
    module_of,
)
from shardload.transformers_shim._placeholders import placeholder_of_any
from shardload.transformers_shim._special_tokens import ATTRIBUTES as SPECIAL_TOKENS
from shardload.transformers_shim._special_tokens import AddedToken, as_token
from shardload.transformers_shim._stars import star_module
from shardload.transformers_shim.models.auto import _auto as auto_class

__all__ = [
    "SPECIAL_TOKENS",
    "AddedToken",
    "Answer",
    "answer",
    "as_token",
    "auto_class",
    "guarded_lines",
    "has_module",
    "has_name",
    "import_for",
    "is_lacking",
    "kind_of_answer",
    "known",
    "looked_up",
    "module_of",
    "offered",
    "placeholder_of_any",
    "star_module",
    "unpacks_two",
    "with_choices",
]
