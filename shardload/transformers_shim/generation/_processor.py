"""The base class of processors, which change the scores of the next token, and the list that applies them in turn."""

from __future__ import annotations

import inspect
from typing import Any

import torch

BANNED = -float("inf")


class LogitsProcessor:
    """Changes the scores of the next token; subclasses define `__call__(input_ids, scores)`."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return the changed scores, (batch, vocabulary)."""
        raise NotImplementedError(f"{type(self)} defines no __call__")


class LogitsWarper(LogitsProcessor):
    """A processor for sampling only, applied after all other processors."""


class LogitsProcessorList(list[Any]):
    """Processors applied one after another."""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return the scores, (batch, vocabulary), after every processor.

        `kwargs` are passed to processors that take more than ids and scores.
        """
        for processor in self:
            wants_more = len(inspect.signature(processor).parameters) > 2
            scores = processor(input_ids, scores, **kwargs) if wants_more else processor(input_ids, scores)
        return scores


def token_ids(value: Any) -> list[int]:
    """Return the ids of one id, of a list of them or of a tensor; None is no id."""
    if value is None:
        return []
    if isinstance(value, torch.Tensor):
        return [int(number) for number in value.reshape(-1).tolist()]
    return [int(number) for number in value] if isinstance(value, (list, tuple, set)) else [int(value)]


def ban(scores: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Return scores, (batch, vocabulary), with these ids at minus infinity; ids past the vocabulary are ignored."""
    banned = scores.clone()
    banned[:, [number for number in ids if number < scores.shape[-1]]] = BANNED
    return banned


def only(scores: torch.Tensor, token: int) -> torch.Tensor:
    """Return scores, (batch, vocabulary), that leave one token possible."""
    forced = torch.full_like(scores, BANNED)
    forced[:, token] = 0
    return forced
