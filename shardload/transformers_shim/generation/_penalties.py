"""Processors that make tokens less or more likely depending on the tokens before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from shardload.transformers_shim.generation._processor import BANNED, LogitsProcessor, token_ids

if TYPE_CHECKING:
    from torch import Tensor


class RepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Divides the positive scores, and multiplies the negative ones, of all tokens so far by `penalty`."""

    def __init__(self, penalty: float) -> None:
        self.penalty = _positive(penalty, "repetition_penalty")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the penalised scores, (batch, vocabulary)."""
        return _penalised(scores, input_ids, self.penalty)


class EncoderRepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Favours (`penalty` > 1) or disfavours the tokens of the prompt."""

    def __init__(self, penalty: float, encoder_input_ids: Tensor) -> None:
        self.penalty = 1 / _positive(penalty, "encoder_repetition_penalty")
        self.encoder_input_ids = encoder_input_ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002 - the common signature
        """Return the changed scores, (batch, vocabulary)."""
        return _penalised(scores, self.encoder_input_ids, self.penalty)


class ExponentialDecayLengthPenalty(LogitsProcessor):
    """Makes the end likelier after a number of tokens, by a factor to the power of the steps since then."""

    def __init__(
        self, exponential_decay_length_penalty: Any, eos_token_id: Any, input_ids_seq_length: int
    ) -> None:
        start, self.factor = exponential_decay_length_penalty
        self.start = start + input_ids_seq_length
        self.ends = token_ids(eos_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the changed scores, (batch, vocabulary)."""
        steps = input_ids.shape[-1] - self.start
        if steps <= 0:
            return scores
        gain = torch.zeros_like(scores)
        gain[:, self.ends] = scores[:, self.ends].abs() * (self.factor**steps - 1)
        return scores + gain


class SequenceBiasLogitsProcessor(LogitsProcessor):
    """Adds a bias to the last token of each given sequence where the sequence's other tokens come just before.

    `sequence_bias` maps tuples of ids to numbers, or is a list of [ids, number].
    """

    def __init__(self, sequence_bias: Any) -> None:
        pairs = sequence_bias.items() if isinstance(sequence_bias, dict) else sequence_bias
        self.sequence_bias = {tuple(ids): float(bias) for ids, bias in pairs}
        if not self.sequence_bias or not all(self.sequence_bias):
            raise ValueError("sequence_bias needs at least one sequence, and no empty one")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores, (batch, vocabulary), with the biases; raises ValueError for ids past the vocabulary."""
        over = sorted({i for ids in self.sequence_bias for i in ids if i >= scores.shape[-1]})
        if over:
            raise ValueError(f"ids {over} are not in the vocabulary of {scores.shape[-1]} tokens")
        bias = torch.zeros_like(scores)
        for (*before, last), value in self.sequence_bias.items():
            if not before:
                bias[:, last] += value
            elif len(before) < input_ids.shape[1]:
                written = (input_ids[:, -len(before) :] == input_ids.new_tensor(before)).all(dim=1)
                bias[written, last] += value
        return scores + bias


class NoBadWordsLogitsProcessor(SequenceBiasLogitsProcessor):
    """Bans sequences of ids, except those that are just an end of sequence."""

    def __init__(self, bad_words_ids: Any, eos_token_id: Any = None) -> None:
        if not isinstance(bad_words_ids, list) or not bad_words_ids:
            raise ValueError(f"bad_words_ids must be a list of lists of ids, not {bad_words_ids!r}")
        ends = [(end,) for end in token_ids(eos_token_id)]
        words = {tuple(ids): BANNED for ids in bad_words_ids}
        super().__init__({ids: bias for ids, bias in words.items() if ids not in ends})


class ClassifierFreeGuidanceLogitsProcessor(LogitsProcessor):
    """Moves the first half of a batch away from the second, unconditional half, and returns that one half."""

    def __init__(self, guidance_scale: float) -> None:
        if guidance_scale <= 1:
            raise ValueError(f"guidance_scale must be more than 1, not {guidance_scale!r}")
        self.guidance_scale = guidance_scale

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return guided scores, (batch, vocabulary), from scores of (2 * batch, vocabulary)."""
        if scores.shape[0] != 2 * input_ids.shape[0]:
            raise ValueError(
                f"guidance needs two rows of scores a sequence: {scores.shape[0]} for {input_ids.shape[0]}"
            )
        conditional, unconditional = scores.chunk(2, dim=0)
        return unconditional + (conditional - unconditional) * self.guidance_scale


def _penalised(scores: Tensor, ids: Tensor, penalty: float) -> Tensor:
    seen = torch.gather(scores, 1, ids)
    return scores.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def _positive(value: float, name: str) -> float:
    if not isinstance(value, (int, float)) or value <= 0:
        raise ValueError(f"{name} must be a positive number, not {value!r}")
    return value
