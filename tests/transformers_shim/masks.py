"""Masks spelled out entry by entry."""

from __future__ import annotations

import itertools

import torch

PADDING = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


def additive(seen, dtype=torch.float32):
    """Return the additive mask of a nested list or a tensor of what is seen."""
    seen = torch.as_tensor(seen)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def seen_by_definition(padding, queries, keys, window=None):
    """Spell the causal mask out, entry by entry."""
    seen = torch.zeros(padding.shape[0], 1, queries, keys, dtype=torch.bool)
    for batch, query, key in itertools.product(range(padding.shape[0]), range(queries), range(keys)):
        place = query + keys - queries
        near = window is None or place - key < window
        seen[batch, 0, query, key] = key <= place and near and bool(padding[batch, key])
    return seen
