"""The base class of caches of keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Cache:
    """The base of all caches; one of a bounded length returns that from `get_max_length`."""

    key_cache: list[torch.Tensor]
    value_cache: list[torch.Tensor]
    is_compileable = False

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        cache_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a layer's new keys and values, and return all of that layer's."""
        raise NotImplementedError(f"{type(self).__name__} does not define update")

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens a layer holds."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_seq_length")

    def get_max_length(self) -> int | None:
        """Return how many tokens fit, or None for a cache without a bound."""
        return None

    def get_max_cache_shape(self) -> int | None:
        """Return what `get_max_length` returns, under the name that it has since 4.46."""
        return self.get_max_length()

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Return the position of the next token, for code since 5.0."""
        return self.get_seq_length(layer_idx)

    @property
    def is_sliding(self) -> list[bool]:
        """For each layer whether it holds a window of tokens only: none does here."""
        return [False] * len(self)  # type: ignore[arg-type]

    is_linear = is_dummy = is_sliding

    def get_usable_length(self, new_seq_length: int, layer_idx: int | None = 0) -> int:
        """Return how many cached tokens the next forward pass over so many new ones sees."""
        longest, held = self.get_max_length(), self.get_seq_length(layer_idx or 0)
        return longest - new_seq_length if longest is not None and held + new_seq_length > longest else held

    @property
    def seen_tokens(self) -> int | None:
        """Number of tokens that went through the first layer, where the cache counts them."""
        return getattr(self, "_seen_tokens", None)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Reorder the batch to the beams that continue."""
        for tensors in (self.key_cache, self.value_cache):
            for layer, tensor in enumerate(tensors):
                tensors[layer] = tensor.index_select(0, beam_idx.to(tensor.device))
