"""Small methods that repos' own generation loops call, and the scores of generated sequences."""

from __future__ import annotations

from typing import Any

import torch

from shardload.errors import UnsupportedError, Wording


class HelpersMixin:
    """Methods of the base class that a repo's own `generate` or `_sample` calls."""

    config: Any

    def _validate_model_class(self) -> None:
        """Raise UnsupportedError for a class that does not generate."""
        if not self.can_generate():  # type: ignore[attr-defined]
            raise UnsupportedError(
                f"{type(self).__name__} does not generate: it has no prepare_inputs_for_generation",
                cure=Wording(
                    "load the repo's class for causal language modelling ({auto_class})", auto_class=...
                ),
            )

    def _get_generation_mode(self, generation_config: Any, assistant_model: Any = None) -> Any:
        """Return the generation mode that the settings ask for."""
        return generation_config.get_generation_mode(assistant_model)

    def _has_unfinished_sequences(self, this_peer_finished: bool, *_args: Any, **_kwargs: Any) -> bool:
        """Return whether to continue."""
        return not this_peer_finished

    def adjust_logits_during_generation(self, logits: Any, **_kwargs: Any) -> Any:
        """Return the logits; old classes override this."""
        return logits

    def compute_transition_scores(
        self, sequences: Any, scores: Any, beam_indices: Any = None, normalize_logits: bool = False
    ) -> Any:
        """Return the score of each new token, (batch, steps), from `generate`'s ids and scores.

        With `normalize_logits` these are log-probabilities. `beam_indices` are the beams that each sequence followed.
        """
        stacked = torch.stack(tuple(scores), dim=1)
        if normalize_logits:
            stacked = stacked.log_softmax(dim=-1)
        if beam_indices is None:
            new = sequences[:, -stacked.shape[1] :]
            return stacked.gather(-1, new[..., None]).squeeze(-1)
        steps = int((beam_indices >= 0).sum(dim=-1).max())
        places = beam_indices[:, :steps]
        new = sequences[:, sequences.shape[1] - steps :]
        along = torch.arange(steps, device=new.device).expand_as(new)
        return stacked[places.clamp(min=0), along, new].masked_fill(places < 0, 0)
