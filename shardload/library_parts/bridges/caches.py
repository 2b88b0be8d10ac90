"""The cache that a model of the library makes for itself."""

from __future__ import annotations

from typing import Any

from shardload.library_parts.model_files import defines
from shardload.transformers_shim import cache_utils
from shardload.transformers_shim.cache_utils import DynamicCache as StandIn


class _AnyOfTheStandIn(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, StandIn)


class DynamicCache(StandIn, metaclass=_AnyOfTheStandIn):
    """The stand-in's cache, which lays a layer's first keys and values out in order, as the library does since 4.54.

    A matrix that is laid out otherwise has the same numbers, and its products differ in the last bit.
    """

    def update(
        self, key_states: Any, value_states: Any, layer_idx: int, cache_kwargs: dict[str, Any] | None = None
    ) -> tuple[Any, Any]:
        """Append a layer's new keys and values, and return all of that layer's."""
        if self.get_seq_length(layer_idx) == 0:
            key_states, value_states = key_states.contiguous(), value_states.contiguous()
        return super().update(key_states, value_states, layer_idx, cache_kwargs)


def dynamic_cache() -> Any:
    """Return the class for the installed release."""
    return DynamicCache if defines("cache_utils", "DynamicLayer") else StandIn


def fixed_cache(name: str) -> Any:
    """Return a cache of fixed length for a file of a release whose own are as the stand-in's; None for later ones."""
    return None if defines("cache_utils", "DynamicLayer") else getattr(cache_utils, name)
