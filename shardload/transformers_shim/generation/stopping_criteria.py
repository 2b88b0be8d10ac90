"""`transformers.generation.stopping_criteria`: criteria that end a generation."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch

from shardload.transformers_shim.generation._processor import token_ids

# For a repo's own loop that gives a maximal length and no criteria.
STOPPING_CRITERIA_INPUTS_DOCSTRING = ""


class Stops(torch.Tensor):
    """Which sequences end: bools of (batch,), true as a whole when all are.

    Code before 4.39 writes `if criteria(ids, scores)`, later code `unfinished & ~criteria(ids, scores)`. Results
    computed from it are plain tensors.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return bool(self.as_subclass(torch.Tensor).all().item())


class StoppingCriteria:
    """Decides when generation ends; subclasses define `__call__(input_ids, scores)`.

    It returns one bool for the batch, as code before 4.39 does, or bools of (batch,).
    """

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return whether to stop."""
        raise NotImplementedError(f"{type(self)} defines no __call__")


class StoppingCriteriaList(list[Any]):
    """A list of criteria, each of which alone can end a sequence."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Stops:
        """Return which sequences end, (batch,)."""
        done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for criterion in self:
            verdict = criterion(input_ids, scores, **kwargs)
            if isinstance(verdict, torch.Tensor):
                done = done | verdict.to(device=done.device, dtype=torch.bool).reshape(-1)
            elif verdict:
                done = torch.ones_like(done)
        return done.as_subclass(Stops)  # type: ignore[return-value, unused-ignore]

    @property
    def max_length(self) -> int | None:
        """The longest sequence that a criterion of the list allows, or None."""
        return next((c.max_length for c in self if getattr(c, "max_length", None) is not None), None)


class MaxLengthCriteria(StoppingCriteria):
    """Ends all sequences at a length, prompt included."""

    def __init__(self, max_length: int, max_position_embeddings: int | None = None) -> None:
        self.max_length = max_length
        self.max_position_embeddings = max_position_embeddings

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_kwargs: Any) -> torch.Tensor:  # noqa: ARG002
        """Return whether the length is reached, (batch,)."""
        return _all(input_ids, input_ids.shape[-1] >= self.max_length)


class MaxNewTokensCriteria(StoppingCriteria):
    """Ends all sequences after a number of new tokens."""

    def __init__(self, start_length: int, max_new_tokens: int) -> None:
        self.start_length = start_length
        self.max_new_tokens = max_new_tokens
        self.max_length = start_length + max_new_tokens

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_kwargs: Any) -> torch.Tensor:  # noqa: ARG002
        """Return whether the length is reached, (batch,)."""
        return _all(input_ids, input_ids.shape[-1] >= self.max_length)


class MaxTimeCriteria(StoppingCriteria):
    """Ends all sequences once a number of seconds has passed since it was made."""

    def __init__(self, max_time: float, initial_timestamp: float | None = None) -> None:
        self.max_time = max_time
        self.initial_timestamp = time.time() if initial_timestamp is None else initial_timestamp

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_kwargs: Any) -> torch.Tensor:  # noqa: ARG002
        """Return whether the time is over, (batch,)."""
        return _all(input_ids, time.time() - self.initial_timestamp > self.max_time)


class EosTokenCriteria(StoppingCriteria):
    """Ends a sequence whose last token is one of the given ones."""

    def __init__(self, eos_token_id: Any) -> None:
        self.eos_token_id = torch.tensor(token_ids(eos_token_id))

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_kwargs: Any) -> torch.Tensor:  # noqa: ARG002
        """Return which sequences are at an end, (batch,)."""
        return torch.isin(input_ids[:, -1], self.eos_token_id.to(input_ids.device))


class StopStringCriteria(StoppingCriteria):
    """Ends a sequence whose text ends with one of the given strings.

    Each step decodes the last tokens, as many as the longest string can need.
    """

    def __init__(self, tokenizer: Any, stop_strings: str | list[str]) -> None:
        self.tokenizer = tokenizer
        self.stop_strings = tuple([stop_strings] if isinstance(stop_strings, str) else stop_strings)
        self._window = max((len(text.encode()) for text in self.stop_strings), default=0) + 1

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_kwargs: Any) -> torch.Tensor:  # noqa: ARG002
        """Return which sequences are at an end, (batch,)."""
        done = [self._ends(ids) for ids in input_ids[:, -self._window :].tolist()]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)

    def _ends(self, ids: list[int]) -> bool:
        text = self.tokenizer.decode(ids)
        before = self.tokenizer.decode(ids[:-1])
        # The last token may extend past the string: the string counts if it was not complete before that token.
        return any(text.count(stop) > before.count(stop) for stop in self.stop_strings)


def validate_stopping_criteria(
    stopping_criteria: StoppingCriteriaList, max_length: int
) -> StoppingCriteriaList:
    """Return the criteria, with one for `max_length` where they have none; warns where theirs differs."""
    limit = stopping_criteria.max_length
    if limit is None:
        return StoppingCriteriaList([*stopping_criteria, MaxLengthCriteria(max_length=max_length)])
    if limit != max_length:
        warnings.warn(f"the stopping criteria end at {limit} tokens, not {max_length}", stacklevel=2)
    return stopping_criteria


def _all(input_ids: torch.Tensor, value: bool) -> torch.Tensor:
    return torch.full((input_ids.shape[0],), value, dtype=torch.bool, device=input_ids.device)
