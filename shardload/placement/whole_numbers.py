"""Casts stored numbers to the integers or bools of a slot, and refuses values that such a slot can't hold."""

from __future__ import annotations

import torch

from shardload.errors import MismatchError, Wording

_PIECE = 2**20  # elements that are cast and compared at a time


def as_whole_numbers(key: str, stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return `stored` in the dtype of its slot. Raises MismatchError where that would change a value."""
    result = torch.empty(stored.shape, dtype=dtype, device=stored.device)
    source, target = stored.reshape(-1), result.view(-1)
    for start in range(0, source.numel(), _PIECE):
        before, after = source[start : start + _PIECE], target[start : start + _PIECE]
        after.copy_(before)
        if not torch.equal(after.to(stored.dtype), before):
            names = [str(kind).removeprefix("torch.") for kind in (stored.dtype, dtype)]
            raise MismatchError(
                f"stored as {names[0]}, with values that the model's {names[1]} can't hold; nothing was loaded",
                where=key,
                cure=Wording(
                    "store whole numbers; or keep the class's own value: {key_map} and {allow_missing}",
                    key_map={key: None},
                    allow_missing=[key],
                ),
            )
    return result
