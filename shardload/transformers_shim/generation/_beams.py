"""Beam search: several continuations of each prompt are followed, and the best ended one is returned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from shardload.transformers_shim.generation._loop import Record
from shardload.transformers_shim.generation._processor import LogitsProcessorList, token_ids
from shardload.transformers_shim.generation._signatures import accepted
from shardload.transformers_shim.generation._steps import written_for
from shardload.transformers_shim.generation.beam_search import BeamSearchScorer
from shardload.transformers_shim.generation.stopping_criteria import StoppingCriteriaList

if TYPE_CHECKING:
    from torch import Tensor

_NEVER = -1e9  # the score of a beam that must not be chosen


class BeamsMixin:
    """Beam search over the likeliest tokens, or over drawn ones."""

    config: Any
    forward: Any
    _model_inputs: Any
    _after_step: Any
    _with_first_positions: Any
    _reorder_cache: Any

    def _run_beams(
        self,
        settings: Any,
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        streamer: Any = None,
        **common: Any,
    ) -> Any:
        """Run beam search by the settings; `input_ids` has each prompt `num_beams` times. It can't feed a streamer."""
        del streamer
        scorer = BeamSearchScorer(
            input_ids.shape[0] // settings.num_beams,
            settings.num_beams,
            input_ids.device,
            length_penalty=settings.length_penalty,
            do_early_stopping=settings.early_stopping,
            num_beam_hyps_to_keep=settings.num_return_sequences,
            max_length=settings.max_length,
        )
        return self._beam_search(input_ids, scorer, generation_config=settings, **common, **model_kwargs)

    def _beam_search(
        self,
        input_ids: Tensor,
        beam_scorer: Any,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        synced_gpus: bool = False,  # noqa: ARG002 - the name is the interface
        logits_warper: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Continue `num_beams` beams for each prompt, until none can become better than the sequences that have ended.

        `input_ids` is (batch * beams, length). Returns ids, (batch * returned, longer), or an output with the records
        asked for.
        """
        settings, draw = generation_config, bool(generation_config.do_sample)
        processors = logits_processor if logits_processor is not None else LogitsProcessorList()
        criteria = stopping_criteria if stopping_criteria is not None else StoppingCriteriaList()
        record = Record(settings)
        forward_options = accepted(self.forward, {"return_dict": True, **record.wanted_of_model})
        ends = {name: getattr(settings, name) for name in ("pad_token_id", "eos_token_id")}
        beams, prompt = beam_scorer.num_beams, {"decoder_prompt_len": input_ids.shape[-1]}
        # All beams of a prompt begin alike: only the first is continued, or all would stay the same.
        beam_scores = input_ids.new_full((input_ids.shape[0],), _NEVER, dtype=torch.float)
        beam_scores[::beams] = 0
        came: Any = [()] * input_ids.shape[0] if record.scores is not None else None
        model_kwargs = self._with_first_positions(input_ids, model_kwargs)
        while True:
            inputs = self._model_inputs(input_ids, model_kwargs)
            outputs = self(**{**inputs, **forward_options})  # type: ignore[operator]  # mixed into a Module
            logits = outputs.logits[:, -1, :]
            if written_for(self.config, (4, 45)):
                logits = logits.float()
            scores = processors(input_ids, logits.log_softmax(dim=-1))
            if draw and logits_warper is not None:
                scores = logits_warper(input_ids, scores)
            record.keep(outputs, scores, logits)
            chosen = _candidates(scores + beam_scores[:, None], beams, settings.eos_token_id, draw=draw)
            going = beam_scorer.process(input_ids, *chosen, beam_indices=came, **ends, **prompt)
            beam_scores, places = going["next_beam_scores"], going["next_beam_indices"]
            input_ids = torch.cat([input_ids[places], going["next_beam_tokens"][:, None]], dim=-1)
            model_kwargs = self._after_step(outputs, model_kwargs, inputs)
            if model_kwargs.get("past_key_values") is not None:
                cache = self._temporary_reorder_cache(model_kwargs["past_key_values"], places)
                model_kwargs["past_key_values"] = cache
            if came is not None:
                came = [(*came[place], place) for place in places.tolist()]
            if beam_scorer.is_done or bool(criteria(input_ids, record.scores).all()):
                break
        limit = {"max_length": getattr(criteria, "max_length", None)}
        found = beam_scorer.finalize(
            input_ids, beam_scores, *chosen[1:], beam_indices=came, **ends, **prompt, **limit
        )
        return record.output(self.config, found["sequences"], model_kwargs, found)

    def _temporary_reorder_cache(self, past_key_values: Any, beam_idx: Tensor) -> Any:
        """Return the cache with the rows of the beams that continue; the class's own hook reorders old tuples."""
        if isinstance(past_key_values, (tuple, list)):
            return self._reorder_cache(past_key_values, beam_idx)
        past_key_values.reorder_cache(beam_idx)
        return past_key_values


def _candidates(scores: Tensor, beams: int, ends: Any, *, draw: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the candidates of each prompt, the best first: (scores, tokens, beams that they continue).

    There are enough of them that at least `beams` do not end their sequence. `scores` is (batch * beams, vocabulary).
    """
    vocabulary = scores.shape[-1]
    scores = scores.reshape(-1, beams * vocabulary)
    count = max(2, 1 + len(token_ids(ends))) * beams
    if draw:
        drawn = torch.multinomial(scores.softmax(dim=-1), num_samples=count)
        best, order = scores.gather(-1, drawn).sort(descending=True, dim=1)
        places = drawn.gather(-1, order)
    else:
        best, places = scores.topk(count, dim=1, largest=True, sorted=True)
    return best, places % vocabulary, places // vocabulary
