"""`transformers.cache_utils`: caches of keys and values that are also the old tuple of (key, value) pairs."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from shardload.transformers_shim._cache import Cache
from shardload.transformers_shim._fixed_caches import HybridCache, SlidingWindowCache, StaticCache
from shardload.transformers_shim._missing import later_class, refuse_unknown

if TYPE_CHECKING:
    from collections.abc import Iterator

_WHERE_A_CACHE_LIES = (
    "_distributed_cache_data",
    "num_hidden_layers",
    "offload_only_non_sliding",
    "offloading",
)


class DynamicCache(Cache):
    """Keys and values per layer, each (batch, heads, length, head size), growing along the length.

    Indexing, `len` and iteration treat it as the old tuple of per-layer (key, value) pairs. Later releases pass a
    config or a number of layers, neither of which is used here, or pairs to begin with.
    """

    def __init__(self, ddp_cache_data: Any = None, config: Any = None, **kwargs: Any) -> None:
        del config
        refuse_unknown(type(self).__name__, kwargs, _WHERE_A_CACHE_LIES)
        self.key_cache = []
        self.value_cache = []
        self._seen_tokens = 0
        begun = kwargs.get("_distributed_cache_data", ddp_cache_data)
        if isinstance(begun, Iterable):
            for layer, (key, value, *_) in enumerate(begun):
                self.update(key, value, layer)

    def __getitem__(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not -len(self) <= layer_idx < len(self):
            raise KeyError(f"the cache holds {len(self)} layers, and layer {layer_idx} is asked for")
        return self.key_cache[layer_idx], self.value_cache[layer_idx]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(zip(self.key_cache, self.value_cache, strict=True))

    def __len__(self) -> int:
        return len(self.key_cache)

    @property
    def layers(self) -> list[Any]:
        """The layers as objects with `keys` and `values`, for code since 4.54."""
        return [SimpleNamespace(keys=key, values=value, is_initialized=True) for key, value in self]

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        cache_kwargs: dict[str, Any] | None = None,  # noqa: ARG002 - the name is the interface
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append a layer's new keys and values, and return all of that layer's.

        Layers may be skipped: the skipped ones are empty until they are updated.
        """
        if layer_idx == 0:
            self._seen_tokens += key_states.shape[-2]
        while len(self.key_cache) < layer_idx:
            self.key_cache.append(key_states.new_empty(0))
            self.value_cache.append(value_states.new_empty(0))
        if len(self.key_cache) == layer_idx:
            self.key_cache.append(key_states)
            self.value_cache.append(value_states)
        elif self.key_cache[layer_idx].numel() == 0:
            self.key_cache[layer_idx], self.value_cache[layer_idx] = key_states, value_states
        else:
            self.key_cache[layer_idx] = torch.cat([self.key_cache[layer_idx], key_states], dim=-2)
            self.value_cache[layer_idx] = torch.cat([self.value_cache[layer_idx], value_states], dim=-2)
        return self.key_cache[layer_idx], self.value_cache[layer_idx]

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """Return the length of a layer's cache."""
        layer = layer_idx or 0
        if len(self.key_cache) <= layer or self.key_cache[layer].numel() == 0:
            return 0
        return self.key_cache[layer].shape[-2]

    def get_mask_sizes(self, cache_position: Any, layer_idx: int = 0) -> tuple[int, int]:
        """Return (length of the keys after this pass, their offset), for code since 4.53; 5.x passes the new length."""
        new = cache_position if isinstance(cache_position, int) else cache_position.shape[0]
        return self.get_seq_length(layer_idx) + new, 0

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` tokens; a negative number drops that many of the last."""
        held = self.get_seq_length()
        length = held + max_length if max_length < 0 else max_length
        if held <= length:
            return
        self._seen_tokens = length
        for tensors in (self.key_cache, self.value_cache):
            tensors[:] = [tensor[..., :length, :] if tensor.numel() else tensor for tensor in tensors]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of the batch."""
        for tensors in (self.key_cache, self.value_cache):
            tensors[:] = [tensor.repeat_interleave(repeats, dim=0) for tensor in tensors]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these sequences of the batch."""
        for tensors in (self.key_cache, self.value_cache):
            tensors[:] = [tensor[indices] for tensor in tensors]

    def to_legacy_cache(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Return the tuple of per-layer (key, value) pairs."""
        return tuple(self)

    @classmethod
    def from_legacy_cache(
        cls, past_key_values: Any = None, num_hidden_layers: int | None = None
    ) -> DynamicCache:
        """Return a cache with the pairs of an old tuple; the number of layers follows from them."""
        del num_hidden_layers
        cache = cls()
        for layer, (key, value) in enumerate(past_key_values or ()):
            cache.update(key, value, layer)
        return cache


class EncoderDecoderCache(Cache):
    """The cache of a decoder with an encoder: a growing one for the decoder's tokens, and one for the encoder's.

    `is_updated` says for each layer whether the encoder's keys and values are in it. Indexing, `len` and iteration
    treat it as the old tuple of per-layer (key, value, encoder's key, encoder's value).
    """

    def __init__(self, self_attention_cache: Any, cross_attention_cache: Any) -> None:
        self.self_attention_cache = self_attention_cache
        self.cross_attention_cache = cross_attention_cache
        held = range(len(cross_attention_cache))
        self.is_updated = {layer: cross_attention_cache.get_seq_length(layer) > 0 for layer in held}

    def __getitem__(self, layer_idx: int) -> tuple[torch.Tensor, ...]:
        own = self.self_attention_cache[layer_idx]
        return (*own, *self.cross_attention_cache[layer_idx]) if self.is_updated.get(layer_idx) else own

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        return (self[layer] for layer in range(len(self)))

    def __len__(self) -> int:
        return len(self.self_attention_cache)

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """Return how many of the decoder's tokens a layer holds."""
        return int(self.self_attention_cache.get_seq_length(layer_idx or 0))

    def get_mask_sizes(self, cache_position: Any, layer_idx: int = 0) -> tuple[int, int]:
        """Return (length of the decoder's keys after this pass, their offset), for code since 4.53."""
        sizes: tuple[int, int] = self.self_attention_cache.get_mask_sizes(cache_position, layer_idx)
        return sizes

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Reorder the batch to the beams that continue."""
        for part in self._parts:
            part.reorder_cache(beam_idx)

    def crop(self, maximum_length: int) -> None:
        """Keep the decoder's first tokens; a negative number drops that many of the last."""
        self.self_attention_cache.crop(maximum_length)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of the batch."""
        for part in self._parts:
            part.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these sequences of the batch."""
        for part in self._parts:
            part.batch_select_indices(indices)

    @property
    def _parts(self) -> tuple[Any, Any]:
        return self.self_attention_cache, self.cross_attention_cache

    def to_legacy_cache(self) -> tuple[tuple[torch.Tensor, ...], ...]:
        """Return the tuple of per-layer (key, value, encoder's key, encoder's value)."""
        return tuple(self)

    @classmethod
    def from_legacy_cache(cls, past_key_values: Any = None) -> EncoderDecoderCache:
        """Return a cache with the tensors of an old tuple."""
        own, cross = DynamicCache(), DynamicCache()
        for layer, (key, value, *encoded) in enumerate(past_key_values or ()):
            own.update(key, value, layer)
            if encoded:
                cross.update(encoded[0], encoded[1], layer)
        return cls(own, cross)


__all__ = [
    "Cache",
    "DynamicCache",
    "EncoderDecoderCache",
    "HybridCache",
    "OffloadedCache",
    "QuantizedCache",
    "SinkCache",
    "SlidingWindowCache",
    "StaticCache",
]

# Caches of fewer bits or in other places: code uses them in isinstance, and makes one only where its caller asks for
# that kind of generation.
SinkCache = later_class("SinkCache", __name__)
QuantizedCache = later_class("QuantizedCache", __name__)
OffloadedCache = later_class("OffloadedCache", __name__)
