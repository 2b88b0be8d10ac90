"""`transformers.generation.beam_search`: which beams continue, and which ended sequences are the best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from shardload.transformers_shim.generation._processor import token_ids

if TYPE_CHECKING:
    from torch import Tensor

# A sequence that has ended: its score, its ids, and the beams that it followed.
_Ended = tuple[float, torch.Tensor, tuple[int, ...]]


class BeamHypotheses:
    """The best ended sequences of one prompt, at most `num_beams` of them.

    A score is the sum of log-probabilities over the length to the power of `length_penalty`.
    """

    def __init__(
        self,
        num_beams: int,
        length_penalty: float,
        early_stopping: bool | str,
        max_length: int | None = None,
    ) -> None:
        if not isinstance(early_stopping, bool) and max_length is None:
            raise ValueError(f"early_stopping={early_stopping!r} needs a max_length")
        self.num_beams = num_beams
        self.length_penalty = length_penalty
        self.early_stopping = early_stopping
        self.max_length = max_length
        self.beams: list[_Ended] = []

    def __len__(self) -> int:
        return len(self.beams)

    @property
    def worst_score(self) -> float:
        """The score that a further sequence has to beat."""
        return min((score for score, _, _ in self.beams), default=1e9)

    def add(
        self,
        hyp: Tensor,
        sum_logprobs: float,
        beam_indices: Any = None,
        generated_len: int | None = None,
    ) -> None:
        """Keep an ended sequence, ids of (length,), where it is among the best."""
        length = hyp.shape[-1] if generated_len is None else generated_len
        score = sum_logprobs / length**self.length_penalty
        if len(self) == self.num_beams:
            if score <= self.worst_score:
                return
            del self.beams[min(range(len(self)), key=lambda place: self.beams[place][0])]
        self.beams.append((score, hyp, beam_indices))

    def is_done(self, best_sum_logprobs: float, cur_len: int, decoder_prompt_len: int = 0) -> bool:
        """Return whether no running beam can become better than the worst of these.

        With `early_stopping` True it is done as soon as there are enough; "never" considers the greatest length that a
        beam may reach, False only its present length.
        """
        if len(self) < self.num_beams:
            return False
        if self.early_stopping is True:
            return True
        length = cur_len - decoder_prompt_len
        if self.early_stopping is not False and self.length_penalty > 0:
            length = (self.max_length or cur_len) - decoder_prompt_len
        return bool(self.worst_score >= best_sum_logprobs / length**self.length_penalty)


class BeamSearchScorer:
    """Chooses the beams that continue at each step, and the sequences that are returned.

    Rows of `num_beams` beams belong to one prompt.
    """

    def __init__(
        self,
        batch_size: int,
        num_beams: int,
        device: Any = None,
        length_penalty: float | None = 1.0,
        do_early_stopping: bool | str | None = False,
        num_beam_hyps_to_keep: int | None = 1,
        num_beam_groups: int | None = 1,
        max_length: int | None = None,
    ) -> None:
        if num_beams < 2:
            raise ValueError(f"num_beams={num_beams}: beam search needs two or more")
        if (num_beam_groups or 1) > 1:
            raise ValueError("groups of beams are not done: num_beam_groups=1")
        self.num_beams = num_beams
        self.device = device
        self.kept = num_beam_hyps_to_keep or 1
        options = (1.0 if length_penalty is None else length_penalty, do_early_stopping or False, max_length)
        self._beam_hyps = [BeamHypotheses(num_beams, *options) for _ in range(batch_size)]
        self._done = [False] * batch_size

    @property
    def is_done(self) -> bool:
        """Whether every prompt has its sequences."""
        return all(self._done)

    def process(
        self,
        input_ids: Tensor,
        next_scores: Tensor,
        next_tokens: Tensor,
        next_indices: Tensor,
        pad_token_id: Any = None,
        eos_token_id: Any = None,
        beam_indices: Any = None,
        group_index: int | None = 0,  # noqa: ARG002 - the name is the interface
        decoder_prompt_len: int | None = 0,
    ) -> dict[str, Tensor]:
        """Return the scores and tokens of the beams that continue, and the beams they come from, each (batch * beams,).

        `next_scores`, `next_tokens` and `next_indices` are candidates, (batch, more than beams), the best first.
        An end among the first `num_beams` candidates ends its beam; a prompt that is done is padded.
        """
        length = input_ids.shape[-1] + 1
        ends, pads = frozenset(token_ids(eos_token_id)), token_ids(pad_token_id)
        rows: list[list[tuple[float, int, int]]] = []
        for row, ended in enumerate(self._beam_hyps):
            if self._done[row]:
                rows.append([(0.0, pads[0], 0)] * self.num_beams)
                continue
            going: list[tuple[float, int, int]] = []
            candidates = zip(
                next_scores[row].tolist(), next_tokens[row].tolist(), next_indices[row].tolist(), strict=True
            )
            for rank, (score, token, beam) in enumerate(candidates):
                place = row * self.num_beams + beam
                if token not in ends:
                    going.append((score, token, place))
                elif rank < self.num_beams:
                    came = None if beam_indices is None else (*beam_indices[place], place)
                    generated = length - (decoder_prompt_len or 0)
                    ended.add(input_ids[place].clone(), score, came, generated)
                if len(going) == self.num_beams:
                    break
            rows.append(going)
            best = float(next_scores[row].max())
            self._done[row] = ended.is_done(best, length, decoder_prompt_len or 0)
        scores, tokens, places = zip(*(beam for row in rows for beam in row), strict=True)
        return {
            "next_beam_scores": next_scores.new_tensor(scores),
            "next_beam_tokens": next_tokens.new_tensor(tokens),
            "next_beam_indices": next_indices.new_tensor(places),
        }

    def finalize(
        self,
        input_ids: Tensor,
        final_beam_scores: Tensor,
        final_beam_tokens: Tensor,  # noqa: ARG002 - the name is the interface
        final_beam_indices: Tensor,  # noqa: ARG002
        max_length: int | None = None,
        pad_token_id: Any = None,
        eos_token_id: Any = None,
        beam_indices: Any = None,
        decoder_prompt_len: int | None = 0,
    ) -> dict[str, Any]:
        """Return the best sequences of each prompt, (batch * kept, length), their scores, and their beams.

        Beams that still run count as ended. Sequences are followed by an end where that fits, and padded.
        """
        for row, ended in enumerate(self._beam_hyps):
            if not self._done[row]:
                for place in range(row * self.num_beams, (row + 1) * self.num_beams):
                    came = None if beam_indices is None else tuple(beam_indices[place])
                    generated = input_ids.shape[-1] - (decoder_prompt_len or 0)
                    ended.add(input_ids[place], float(final_beam_scores[place]), came, generated)
        best = [one for ended in self._beam_hyps for one in self._best_of(ended)]
        longest = max(len(ids) for _, ids, _ in best) + 1
        longest = longest if max_length is None else min(longest, max_length)
        ends, pads = token_ids(eos_token_id), token_ids(pad_token_id)
        sequences = input_ids.new_full((len(best), longest), pads[0] if pads else 0)
        places = input_ids.new_full((len(best), longest), -1)
        for row, (_, ids, came) in enumerate(best):
            sequences[row, : len(ids)] = ids
            if ends and len(ids) < longest:
                sequences[row, len(ids)] = ends[0]
            if came is not None:
                places[row, : len(came)] = places.new_tensor(came)
        return {
            "sequences": sequences,
            "sequence_scores": torch.tensor([score for score, _, _ in best], device=input_ids.device),
            "beam_indices": None if beam_indices is None else places,
        }

    def _best_of(self, ended: BeamHypotheses) -> list[_Ended]:
        """Return the best sequences of a prompt; of two with the same score the later comes first."""
        return sorted(ended.beams, key=lambda one: one[0])[::-1][: self.kept]
