"""TokenizerOptions: settings of a tokenizer that the caller overrules: `padding_side="left"` beside the repo."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from shardload.errors import UsageError
from shardload.keywords.translation import Settings
from shardload.transformers_shim.front import SPECIAL_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping

    Options = Settings | Mapping[str, Any] | None

# What every tokenizer takes; its class's constructor and its settings may name more.
_OF_ALL = frozenset({
    "padding_side", "truncation_side", "model_max_length", "model_input_names", "clean_up_tokenization_spaces",
    "split_special_tokens", "chat_template", "add_bos_token", "add_eos_token", *SPECIAL_TOKENS,
})  # fmt: skip
_SIDES = ("left", "right")


def tokenizer_options(given: Options, cls: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a call overrules. Each of the caller's must be one that its settings or `cls` know.

    Raises KeywordError for any other name, and UsageError for a side that is none.
    """
    if not isinstance(given, Settings):
        return dict(given or {})
    known = _OF_ALL | stored.keys() | _named_by(cls)
    for name, value in given.values.items():
        if name not in known:
            given.refuse(name, "the repo's tokenizer", known)
        if name in ("padding_side", "truncation_side") and value not in _SIDES:
            raise UsageError(f"{name} is {value!r}", where=f"{name}=", cure="pass 'left' or 'right'")
    return dict(given.values)


def _named_by(cls: Any) -> set[str]:
    """Return the names that the constructors of a class and of its bases have."""
    names: set[str] = set()
    for each in getattr(cls, "__mro__", ()):
        if "__init__" in vars(each) and each is not object:
            names.update(inspect.signature(each.__init__).parameters)
    return names - {"self", "args", "kwargs"}
