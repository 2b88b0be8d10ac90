"""Caches of a fixed length: a tensor of zeros per layer, written at the tokens' positions, as 4.42 to 4.51 had them."""

from __future__ import annotations

from typing import Any

import torch

from shardload.transformers_shim._cache import Cache
from shardload.transformers_shim._missing import refuse_unknown


class StaticCache(Cache):
    """Keys and values per layer, each (batch, heads, `max_cache_len`, head size), with zeros where no token is yet."""

    def __init__(
        self,
        config: Any,
        max_batch_size: int | None = None,
        max_cache_len: int | None = None,
        device: Any = None,
        dtype: torch.dtype = torch.float32,
        layer_device_map: dict[int, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_unknown(type(self).__name__, kwargs, ("batch_size",))
        rows: Any = kwargs.get("batch_size", max_batch_size)
        self.max_batch_size: int = rows
        self.max_cache_len: int = max_cache_len or config.max_position_embeddings
        self.num_key_value_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.key_cache, self.value_cache = [], []
        for layer in range(config.num_hidden_layers):
            shape = (
                self.max_batch_size,
                self.num_key_value_heads,
                self._length_of(layer, config),
                self.head_dim,
            )
            place = (layer_device_map or {}).get(layer, device)
            self.key_cache.append(torch.zeros(shape, dtype=dtype, device=place))
            self.value_cache.append(torch.zeros(shape, dtype=dtype, device=place))

    def __len__(self) -> int:
        return len(self.key_cache)

    def _length_of(self, layer: int, config: Any) -> int:  # noqa: ARG002 - others have layers of several lengths
        return self.max_cache_len

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        cache_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new keys and values at `cache_kwargs["cache_position"]`, and return the whole layer's."""
        options = cache_kwargs or {}
        write = _slide if self._slides(options) else _write
        return (
            write(self.key_cache, layer_idx, key_states, options.get("cache_position")),
            write(self.value_cache, layer_idx, value_states, options.get("cache_position")),
        )

    def _slides(self, options: dict[str, Any]) -> bool:  # noqa: ARG002 - others have windows
        return False

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """Return how many tokens a layer holds: how many of its keys are not zeros."""
        return int(self.key_cache[layer_idx or 0][0, 0].any(dim=-1).sum())

    def get_max_length(self) -> int:
        """Return how many tokens fit."""
        return self.max_cache_len

    def get_mask_sizes(self, cache_position: Any, layer_idx: int = 0) -> tuple[int, int]:
        """Return (length of the keys, their offset), for code since 4.53."""
        del cache_position
        return self.key_cache[layer_idx].shape[2], 0

    def reset(self) -> None:
        """Forget all tokens."""
        for tensor in (*self.key_cache, *self.value_cache):
            tensor.zero_()


class SlidingWindowCache(StaticCache):
    """A cache whose layers hold the last `config.sliding_window` tokens."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        self._window = _window_of(config, type(self))
        super().__init__(config, *args, **kwargs)
        self.max_cache_len = min(self._window, self.max_cache_len)

    def _length_of(self, layer: int, config: Any) -> int:  # noqa: ARG002 - all layers slide
        return min(self._window, self.max_cache_len)

    def _slides(self, options: dict[str, Any]) -> bool:  # noqa: ARG002 - all layers slide
        return True


class HybridCache(StaticCache):
    """A cache of layers that hold a window, and of every so many (`config.sliding_window_pattern`, 2) that hold all.

    The layer says which it is: `cache_kwargs["sliding_window"]` is None for one that holds all.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        self._window, self._pattern = (
            _window_of(config, type(self)),
            getattr(config, "sliding_window_pattern", 2),
        )
        super().__init__(config, *args, **kwargs)

    @property
    def is_sliding(self) -> list[bool]:
        """For each layer whether it holds a window of tokens only."""
        return [self._holds_a_window(layer) for layer in range(len(self))]

    def _holds_a_window(self, layer: int) -> bool:
        return (layer + 1) % self._pattern != 0

    def _length_of(self, layer: int, config: Any) -> int:  # noqa: ARG002 - the pattern is kept
        longest = self.max_cache_len
        return min(self._window, longest) if self._holds_a_window(layer) else longest

    def _slides(self, options: dict[str, Any]) -> bool:
        return bool(options.get("sliding_window"))


def _window_of(config: Any, kind: type[Any]) -> int:
    window: int | None = getattr(config, "sliding_window", None)
    if window is None:
        raise ValueError(f"{kind.__name__} is for a config with a sliding_window, and this one has none")
    return window


def _write(held: list[torch.Tensor], layer: int, states: torch.Tensor, positions: Any) -> torch.Tensor:
    kept = held[layer] = held[layer].to(states.device)
    if positions is None:
        return kept.copy_(states)
    return kept.index_copy_(2, positions, states.to(kept.dtype))


def _slide(held: list[torch.Tensor], layer: int, states: torch.Tensor, positions: Any) -> torch.Tensor:
    kept = held[layer] = held[layer].to(states.device)
    states, length = states.to(kept.dtype), kept.shape[2]
    if len(positions) > length:  # the prompt attends to all of itself; its last tokens are kept
        held[layer] = states[:, :, -length:].clone()
        return states
    last = length - 1
    # At the last place everything moves up by one, also the first time: so the releases did it.
    moved = kept.roll(-1, dims=2) if int(positions[-1]) >= last else kept.clone()
    held[layer] = moved.index_copy_(2, positions.clamp(max=last), states)
    return held[layer]
