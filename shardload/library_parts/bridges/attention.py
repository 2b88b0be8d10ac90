"""Attention functions by name, as parts ask for them: the library's own, then those that a repo registers."""

from __future__ import annotations

import functools
from typing import Any

from shardload.library_parts.attention_weights import KEPT, attention_for
from shardload.library_parts.importer import part_module
from shardload.library_parts.release import installed
from shardload.transformers_shim.modeling_utils import ALL_ATTENTION_FUNCTIONS as OF_THE_STAND_IN
from shardload.transformers_shim.modeling_utils import AttentionInterface as StandIn

_HOMES = {
    "sdpa": "integrations.sdpa_attention",
    "flash_attention_2": "integrations.flash_attention",
    "flex_attention": "integrations.flex_attention",
}


class AttentionInterface(StandIn):
    """Attention functions by the names of `config._attn_implementation`; a file may replace some for itself."""

    def __missing__(self, name: str) -> Any:
        if name == KEPT:
            return attention_for()
        if name in _HOMES:
            return _of_the_library(name)
        return OF_THE_STAND_IN[name]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in _HOMES or name in OF_THE_STAND_IN

    def get_interface(self, attn_implementation: str, default: Any) -> Any:
        """Return the function of that name; the default, which is the model's own, for "eager" and unknown names."""
        if attn_implementation == KEPT:
            return attention_for(default)
        known = attn_implementation in self
        return self[attn_implementation] if known else default  # `get` would not ask `__missing__`

    def valid_keys(self) -> list[str]:
        """Return the names that have a function."""
        return [*dict.fromkeys((*self, *_HOMES, *OF_THE_STAND_IN))]

    @classmethod
    def register(cls, name: str, function: Any) -> None:
        """Add a function for all models."""
        OF_THE_STAND_IN[name] = function


@functools.cache
def _of_the_library(name: str) -> Any:
    """Return the library's own function: it computes otherwise than the stand-in's, to the last bit."""
    module = part_module(_HOMES[name])
    return getattr(module, f"{name.removesuffix('_2').removesuffix('_attention')}_attention_forward")


@functools.cache
def all_attention_functions() -> AttentionInterface | Any:
    """Return the interface that all parts share; the stand-in's where the release has no such files."""
    release = installed()
    there = release is not None and release.file(_HOMES["sdpa"]) is not None
    return AttentionInterface() if there else OF_THE_STAND_IN
