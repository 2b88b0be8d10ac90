"""`transformers.cache_utils`, in part: a growing cache that is also the old tuple of (key, value) pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


class Cache:
    """The base of all caches, for isinstance."""


class DynamicCache(Cache):
    """Keys and values per layer, each (batch, heads, length, head size), growing along the length.

    Indexing, `len` and iteration treat it as the old tuple of per-layer (key, value) pairs.
    """

    def __init__(self) -> None:
        self.key_cache: list[torch.Tensor] = []
        self.value_cache: list[torch.Tensor] = []
        self._seen_tokens = 0

    def __getitem__(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.key_cache[layer_idx], self.value_cache[layer_idx]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(zip(self.key_cache, self.value_cache, strict=True))

    def __len__(self) -> int:
        return len(self.key_cache)

    @property
    def seen_tokens(self) -> int:
        """Number of tokens that went through the first layer."""
        return self._seen_tokens

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        cache_kwargs: dict[str, Any] | None = None,  # noqa: ARG002 - the name is the interface
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append a layer's new keys and values, and return all of that layer's."""
        if layer_idx == 0:
            self._seen_tokens += key_states.shape[-2]
        if len(self.key_cache) <= layer_idx:
            self.key_cache.append(key_states)
            self.value_cache.append(value_states)
        else:
            self.key_cache[layer_idx] = torch.cat([self.key_cache[layer_idx], key_states], dim=-2)
            self.value_cache[layer_idx] = torch.cat([self.value_cache[layer_idx], value_states], dim=-2)
        return self.key_cache[layer_idx], self.value_cache[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the length of a layer's cache."""
        return self.key_cache[layer_idx].shape[-2] if len(self.key_cache) > layer_idx else 0

    def get_max_length(self) -> None:
        """Return None: the cache grows without a bound."""
        return

    def get_usable_length(self, new_seq_length: int, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Return how much of the cache the next forward pass sees: all of it."""
        return self.get_seq_length(layer_idx)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Reorder the batch to the beams that go on."""
        for tensors in (self.key_cache, self.value_cache):
            for layer, tensor in enumerate(tensors):
                tensors[layer] = tensor.index_select(0, beam_idx.to(tensor.device))

    def to_legacy_cache(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Return the tuple of per-layer (key, value) pairs."""
        return tuple(self)

    @classmethod
    def from_legacy_cache(cls, past_key_values: Any = None) -> DynamicCache:
        """Return a cache with the pairs of an old tuple."""
        cache = cls()
        for layer, (key, value) in enumerate(past_key_values or ()):
            cache.update(key, value, layer)
        return cache
