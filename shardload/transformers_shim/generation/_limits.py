"""Processors that forbid or force tokens: repeated n-grams, early ends, given tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from shardload.transformers_shim.generation._processor import BANNED, LogitsProcessor, ban, only, token_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


class MinLengthLogitsProcessor(LogitsProcessor):
    """Forbids the end until a sequence, its prompt included, has `min_length` tokens."""

    def __init__(self, min_length: int, eos_token_id: Any) -> None:
        self.min_length = _natural(min_length, "min_length")
        self.ends = token_ids(eos_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores, (batch, vocabulary)."""
        return ban(scores, self.ends) if input_ids.shape[-1] < self.min_length else scores


class MinNewTokensLengthLogitsProcessor(LogitsProcessor):
    """Forbids the end until `min_new_tokens` tokens follow the prompt."""

    def __init__(self, prompt_length_to_skip: int, min_new_tokens: int, eos_token_id: Any) -> None:
        self.prompt_length_to_skip = _natural(prompt_length_to_skip, "prompt_length_to_skip")
        self.min_new_tokens = _natural(min_new_tokens, "min_new_tokens")
        self.ends = token_ids(eos_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores, (batch, vocabulary)."""
        new = input_ids.shape[-1] - self.prompt_length_to_skip
        return ban(scores, self.ends) if new < self.min_new_tokens else scores


class NoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Forbids the token that would complete an n-gram that the sequence has already."""

    def __init__(self, ngram_size: int) -> None:
        self.ngram_size = _natural(ngram_size, "no_repeat_ngram_size", least=1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores, (batch, vocabulary)."""
        return _without_repeats(input_ids.tolist(), input_ids.tolist(), self.ngram_size, scores)


class EncoderNoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Forbids the token that would complete an n-gram of the prompt."""

    def __init__(self, encoder_ngram_size: int, encoder_input_ids: Tensor) -> None:
        self.ngram_size = _natural(encoder_ngram_size, "encoder_no_repeat_ngram_size", least=1)
        ids = encoder_input_ids if encoder_input_ids.dim() > 1 else encoder_input_ids[None]
        self.prompts: list[list[int]] = ids.tolist()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores, (batch, vocabulary)."""
        each = input_ids.shape[0] // len(self.prompts)
        prompts = [prompt for prompt in self.prompts for _ in range(each)]
        return _without_repeats(input_ids.tolist(), prompts, self.ngram_size, scores)


class PrefixConstrainedLogitsProcessor(LogitsProcessor):
    """Allows only the tokens that a function of (number of the prompt, ids so far) returns."""

    def __init__(
        self, prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]], num_beams: int
    ) -> None:
        self._allowed = prefix_allowed_tokens_fn
        self._num_beams = num_beams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores, (batch, vocabulary); raises ValueError where nothing is allowed."""
        mask = torch.full_like(scores, BANNED)
        for row, ids in enumerate(input_ids):
            number = row // self._num_beams
            allowed = self._allowed(number, ids)
            if len(allowed) == 0:
                raise ValueError(f"prefix_allowed_tokens_fn allows no token for prompt {number}")
            mask[row, allowed] = 0
        return scores + mask


class ForcedBOSTokenLogitsProcessor(LogitsProcessor):
    """Forces the given token after a lone start token."""

    def __init__(self, bos_token_id: int) -> None:
        self.bos_token_id = bos_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores, (batch, vocabulary)."""
        return only(scores, self.bos_token_id) if input_ids.shape[-1] == 1 else scores


class ForcedEOSTokenLogitsProcessor(LogitsProcessor):
    """Forces an end token as the last one before `max_length`."""

    def __init__(self, max_length: int, eos_token_id: Any) -> None:
        self.max_length = max_length
        self.ends = token_ids(eos_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores, (batch, vocabulary)."""
        if input_ids.shape[-1] != self.max_length - 1:
            return scores
        forced = torch.full_like(scores, BANNED)
        forced[:, self.ends] = 0
        return forced


class ForceTokensLogitsProcessor(LogitsProcessor):
    """Forces given tokens at given lengths: a list of [length, token]."""

    def __init__(self, force_token_map: Any, _has_warned: bool = True) -> None:
        self.force_token_map = dict(force_token_map)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores, (batch, vocabulary)."""
        token = self.force_token_map.get(input_ids.shape[-1])
        return scores if token is None else only(scores, token)


class SuppressTokensLogitsProcessor(LogitsProcessor):
    """Forbids tokens."""

    def __init__(self, suppress_tokens: Any) -> None:
        self.suppress_tokens = token_ids(suppress_tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002 - the common signature
        """Return the scores, (batch, vocabulary)."""
        return ban(scores, self.suppress_tokens)


class SuppressTokensAtBeginLogitsProcessor(LogitsProcessor):
    """Forbids tokens at one length, where generation begins."""

    def __init__(self, begin_suppress_tokens: Any, begin_index: int) -> None:
        self.begin_suppress_tokens = token_ids(begin_suppress_tokens)
        self.begin_index = begin_index

    def set_begin_index(self, begin_index: int) -> None:
        """Move the length at which the tokens are forbidden."""
        self.begin_index = begin_index

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores, (batch, vocabulary)."""
        return ban(scores, self.begin_suppress_tokens) if input_ids.shape[-1] == self.begin_index else scores


class InfNanRemoveLogitsProcessor(LogitsProcessor):
    """Replaces NaN by zero and infinities by the dtype's extremes."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Return finite scores, (batch, vocabulary)."""
        limits = torch.finfo(scores.dtype)
        return torch.nan_to_num(scores, nan=0.0, posinf=limits.max, neginf=limits.min)


def _without_repeats(sequences: list[list[int]], known: list[list[int]], size: int, scores: Tensor) -> Tensor:
    """Return scores in which no token completes an n-gram of `known` (one list for each sequence)."""
    result = scores.clone()
    for row, (ids, others) in enumerate(zip(sequences, known, strict=True)):
        if len(ids) + 1 < size:
            continue
        before = ids[len(ids) - size + 1 :]
        starts = range(len(others) - size + 1)
        completing = [others[s + size - 1] for s in starts if others[s : s + size - 1] == before]
        result[row, completing] = BANNED
    return result


def _natural(value: Any, name: str, least: int = 0) -> int:
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
    return value
