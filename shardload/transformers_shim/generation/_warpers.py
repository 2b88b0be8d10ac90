"""Warpers: temperature, and the ways to cut off a distribution's tail before a token is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from shardload.transformers_shim.generation._processor import BANNED, LogitsProcessor, LogitsWarper

if TYPE_CHECKING:
    from torch import Tensor


class TemperatureLogitsWarper(LogitsWarper):
    """Divides scores by a temperature; raises ValueError unless it is positive."""

    def __init__(self, temperature: float) -> None:
        if not isinstance(temperature, (int, float)) or temperature <= 0:
            raise ValueError(
                f"temperature must be a positive number, not {temperature!r}; for greedy choice, do_sample=False"
            )
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002 - the common signature
        """Return the scores, (batch, vocabulary), divided by the temperature."""
        return scores / self.temperature


class _Cut(LogitsWarper):
    """A warper that removes tokens, but never the likeliest `min_tokens_to_keep`."""

    def __init__(self, filter_value: float = BANNED, min_tokens_to_keep: int = 1) -> None:
        if not isinstance(min_tokens_to_keep, int) or min_tokens_to_keep < 1:
            raise ValueError(f"min_tokens_to_keep must be a positive integer, not {min_tokens_to_keep!r}")
        self.filter_value = filter_value
        self.min_tokens_to_keep = min_tokens_to_keep

    def _spare_likeliest(self, scores: Tensor, remove: Tensor) -> Tensor:
        """Return `scores` with filter_value where `remove` is true and the token is not among the likeliest."""
        kept = min(self.min_tokens_to_keep, scores.shape[-1])
        least = torch.topk(scores, kept)[0][..., -1, None]
        return scores.masked_fill(remove & (scores < least), self.filter_value)


class TopKLogitsWarper(_Cut):
    """Keeps the `top_k` likeliest tokens, and those as likely as the last of them."""

    def __init__(self, top_k: int, filter_value: float = BANNED, min_tokens_to_keep: int = 1) -> None:
        super().__init__(filter_value, min_tokens_to_keep)
        if not isinstance(top_k, int) or top_k <= 0:
            raise ValueError(f"top_k must be a positive integer, not {top_k!r}")
        self.top_k = max(top_k, min_tokens_to_keep)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Return the scores, (batch, vocabulary), cut."""
        least = torch.topk(scores, min(self.top_k, scores.shape[-1]))[0][..., -1, None]
        return scores.masked_fill(scores < least, self.filter_value)


class TopPLogitsWarper(_Cut):
    """Keeps the smallest set of likeliest tokens whose probabilities reach `top_p`."""

    def __init__(self, top_p: float, filter_value: float = BANNED, min_tokens_to_keep: int = 1) -> None:
        super().__init__(filter_value, min_tokens_to_keep)
        self.top_p = float(top_p)
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p must be between 0 and 1, not {top_p!r}")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Return the scores, (batch, vocabulary), cut."""
        # From the least likely up: the tail that sums to no more than 1 - top_p is removed.
        ascending, order = torch.sort(scores, descending=False)
        remove = ascending.softmax(dim=-1).cumsum(dim=-1) <= (1 - self.top_p)
        remove[..., -self.min_tokens_to_keep :] = False
        return scores.masked_fill(remove.scatter(1, order, remove), self.filter_value)


class MinPLogitsWarper(_Cut):
    """Keeps tokens that are at least `min_p` times as likely as the likeliest."""

    def __init__(self, min_p: float, filter_value: float = BANNED, min_tokens_to_keep: int = 1) -> None:
        super().__init__(filter_value, min_tokens_to_keep)
        if not 0 <= min_p <= 1:
            raise ValueError(f"min_p must be between 0 and 1, not {min_p!r}")
        self.min_p = min_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Return the scores, (batch, vocabulary), cut."""
        chances = scores.softmax(dim=-1)
        remove = chances < self.min_p * chances.amax(dim=-1, keepdim=True)
        order = torch.argsort(scores, descending=True, dim=-1)
        remove = remove.scatter(-1, order[..., : self.min_tokens_to_keep], value=False)
        return scores.masked_fill(remove, self.filter_value)


class TypicalLogitsWarper(_Cut):
    """Keeps the tokens whose surprise is nearest to the entropy, until their probabilities reach `mass`."""

    def __init__(self, mass: float = 0.9, filter_value: float = BANNED, min_tokens_to_keep: int = 1) -> None:
        super().__init__(filter_value, min_tokens_to_keep)
        if not 0 < mass < 1:
            raise ValueError(f"typical_p must be between 0 and 1, both excluded, not {mass!r}")
        self.mass = float(mass)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Return the scores, (batch, vocabulary), cut."""
        logs = torch.log_softmax(scores, dim=-1)
        entropy = -(logs * logs.exp()).nansum(-1, keepdim=True)
        distance, order = torch.sort(torch.abs(-logs - entropy), descending=False)
        reached = scores.gather(-1, order).softmax(dim=-1).cumsum(dim=-1)
        last = (reached < self.mass).sum(dim=1).clamp(max=scores.shape[-1] - 1)
        remove = distance > distance.gather(1, last[:, None])
        remove[..., : self.min_tokens_to_keep] = False
        return scores.masked_fill(remove.scatter(1, order, remove), self.filter_value)


class EpsilonLogitsWarper(_Cut):
    """Keeps tokens whose probability is at least `epsilon`."""

    def __init__(self, epsilon: float, filter_value: float = BANNED, min_tokens_to_keep: int = 1) -> None:
        super().__init__(filter_value, min_tokens_to_keep)
        self.epsilon = _cutoff(epsilon, "epsilon_cutoff")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Return the scores, (batch, vocabulary), cut."""
        return self._spare_likeliest(scores, scores.softmax(dim=-1) < self.epsilon)


class EtaLogitsWarper(_Cut):
    """Keeps tokens whose probability is at least min(epsilon, sqrt(epsilon) * exp(-entropy))."""

    def __init__(self, epsilon: float, filter_value: float = BANNED, min_tokens_to_keep: int = 1) -> None:
        super().__init__(filter_value, min_tokens_to_keep)
        self.epsilon = torch.tensor(_cutoff(epsilon, "eta_cutoff"))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Return the scores, (batch, vocabulary), cut."""
        epsilon = self.epsilon.to(scores.device)
        entropy = torch.distributions.Categorical(logits=scores).entropy()  # type: ignore[no-untyped-call]
        eta = torch.min(epsilon, torch.sqrt(epsilon) * torch.exp(-entropy))[..., None]
        return self._spare_likeliest(scores, scores.softmax(dim=-1) < eta)


class LogitNormalization(LogitsProcessor):
    """Turns scores into log-probabilities; it is always applied last."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Return the logarithm of the softmax of the scores, (batch, vocabulary)."""
        return scores.log_softmax(dim=-1)


def _cutoff(value: float, name: str) -> float:
    value = float(value)
    if not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1, both excluded, not {value}")
    return value
