"""The generation loop: forward pass, scores, choice of a token, until every sequence has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from shardload.transformers_shim.generation._encoder_decoder import has_encoder
from shardload.transformers_shim.generation._outputs import (
    GenerateBeamDecoderOnlyOutput,
    GenerateBeamEncoderDecoderOutput,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
)
from shardload.transformers_shim.generation._processor import LogitsProcessorList, token_ids
from shardload.transformers_shim.generation._signatures import accepted
from shardload.transformers_shim.generation._steps import written_for
from shardload.transformers_shim.generation.configuration_utils import GenerationConfig
from shardload.transformers_shim.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

if TYPE_CHECKING:
    from torch import Tensor

_RECORDS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


class LoopMixin:
    """Greedy search and sampling."""

    config: Any
    generation_config: Any
    forward: Any
    _model_inputs: Any
    _after_step: Any
    _with_first_positions: Any

    def _sample(
        self,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        synced_gpus: bool = False,  # noqa: ARG002 - the name is the interface
        streamer: Any = None,
        logits_warper: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Continue every sequence to its end, by the likeliest tokens or by drawn ones.

        `input_ids` is (batch, length). Returns ids, (batch, longer), or an output with the records asked for.
        """
        settings: Any = generation_config or GenerationConfig(do_sample=logits_warper is not None)
        processors = logits_processor if logits_processor is not None else LogitsProcessorList()
        criteria = stopping_criteria if stopping_criteria is not None else StoppingCriteriaList()
        pads = token_ids(settings.pad_token_id)
        record = Record(settings)
        forward_options = accepted(self.forward, {"return_dict": True, **record.wanted_of_model})
        unfinished = torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        model_kwargs = self._with_first_positions(input_ids, model_kwargs)
        while True:
            inputs = self._model_inputs(input_ids, model_kwargs)
            outputs = self(**{**inputs, **forward_options})  # type: ignore[operator]  # mixed into a Module
            logits = outputs.logits[:, -1, :]
            if written_for(
                self.config, (4, 45)
            ):  # since 4.45 scores are processed, and tokens drawn, in float32
                logits = logits.float()
            scores = processors(input_ids, logits)
            if settings.do_sample and logits_warper is not None:
                scores = logits_warper(input_ids, scores)
            record.keep(outputs, scores, logits)
            tokens = _choose(scores, draw=bool(settings.do_sample))
            if pads and any(hasattr(criterion, "eos_token_id") for criterion in criteria):
                tokens = torch.where(unfinished.to(tokens.device), tokens, pads[0])
            tokens = tokens.to(input_ids.device)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
            if streamer is not None:
                streamer.put(tokens.cpu())
            model_kwargs = self._after_step(outputs, model_kwargs, inputs)
            unfinished = unfinished & ~criteria(input_ids, record.scores)
            if not bool(unfinished.any()):
                break
        if streamer is not None:
            streamer.end()
        return record.output(self.config, input_ids, model_kwargs)

    def sample(
        self,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        logits_warper: Any = None,
        max_length: int | None = None,
        pad_token_id: Any = None,
        eos_token_id: Any = None,
        synced_gpus: bool = False,
        streamer: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Sample, as code before 4.39 calls it: settings one by one, criteria and processors ready-made."""
        return self._by_settings(
            input_ids,
            {"do_sample": True, "pad_token_id": pad_token_id, "eos_token_id": eos_token_id},
            max_length,
            stopping_criteria,
            logits_processor=logits_processor,
            logits_warper=logits_warper,
            synced_gpus=synced_gpus,
            streamer=streamer,
            **kwargs,
        )

    def greedy_search(
        self,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        max_length: int | None = None,
        pad_token_id: Any = None,
        eos_token_id: Any = None,
        synced_gpus: bool = False,
        streamer: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Take the likeliest token at each step, as code before 4.39 calls it."""
        return self._by_settings(
            input_ids,
            {"do_sample": False, "pad_token_id": pad_token_id, "eos_token_id": eos_token_id},
            max_length,
            stopping_criteria,
            logits_processor=logits_processor,
            synced_gpus=synced_gpus,
            streamer=streamer,
            **kwargs,
        )

    _greedy_search = greedy_search

    def _by_settings(
        self,
        input_ids: Tensor,
        settings: dict[str, Any],
        max_length: int | None,
        stopping_criteria: Any,
        **kwargs: Any,
    ) -> Any:
        """Run the loop, with the model's own settings and criteria where the caller gives none.

        Raises ValueError where nothing would ever end the loop.
        """
        own = self.generation_config or GenerationConfig()
        names = (*_RECORDS, "return_dict_in_generate")
        settings |= {name: kwargs.pop(name) for name in names if kwargs.get(name) is not None}
        given = {name: value for name, value in settings.items() if value is not None}
        for name in ("pad_token_id", "eos_token_id", *names):
            given.setdefault(name, getattr(own, name, None))
        criteria = StoppingCriteriaList(stopping_criteria or ())
        if max_length is not None:
            criteria.append(MaxLengthCriteria(max_length))
        ends = given["eos_token_id"]
        if ends is not None and not any(isinstance(c, EosTokenCriteria) for c in criteria):
            criteria.append(EosTokenCriteria(ends))
            if given["pad_token_id"] is None:
                given["pad_token_id"] = token_ids(ends)[0]
        if not criteria:
            raise ValueError("nothing would end the text: pass stopping_criteria, max_length or eos_token_id")
        return self._sample(
            input_ids, stopping_criteria=criteria, generation_config=GenerationConfig(**given), **kwargs
        )


class Record:
    """The values of every step that the caller wants returned."""

    def __init__(self, settings: Any) -> None:
        self._in_dict = bool(getattr(settings, "return_dict_in_generate", False))
        wanted = {name: bool(getattr(settings, name, False)) for name in _RECORDS}
        # Passed at each step either way: the config may have another default.
        self.wanted_of_model = {name: wanted[name] for name in ("output_attentions", "output_hidden_states")}
        self.steps: dict[str, tuple[Any, ...] | None] = {
            name.removeprefix("output_"): () if self._in_dict and wanted[name] else None for name in _RECORDS
        }
        self.cross_attentions: tuple[Any, ...] | None = (
            () if self._in_dict and wanted["output_attentions"] else None
        )

    @property
    def scores(self) -> tuple[Any, ...] | None:
        """The scores of each step, (batch, vocabulary), or None where they are not kept."""
        return self.steps["scores"]

    def keep(self, outputs: Any, scores: Tensor, logits: Tensor) -> None:
        """Keep a step's values."""
        values: dict[str, Any] = {"scores": scores, "logits": logits}
        for name in ("attentions", "hidden_states"):
            value = getattr(outputs, f"decoder_{name}", None)
            values[name] = getattr(outputs, name, None) if value is None else value
        for name, kept in self.steps.items():
            if kept is not None:
                self.steps[name] = (*kept, values[name])
        if self.cross_attentions is not None:
            self.cross_attentions += (getattr(outputs, "cross_attentions", None),)

    def output(self, config: Any, sequences: Tensor, model_kwargs: dict[str, Any], beams: Any = None) -> Any:
        """Return the ids, or an output with the kept values; `beams` are beam search's values of the sequences."""
        if not self._in_dict:
            return sequences
        common: dict[str, Any] = {
            "sequences": sequences,
            "past_key_values": model_kwargs.get("past_key_values"),
        }
        if beams is not None:
            scores = beams["sequence_scores"] if self.scores is not None else None
            common |= {"sequences_scores": scores, "beam_indices": beams["beam_indices"]}
        if not has_encoder(config):
            alone = GenerateDecoderOnlyOutput if beams is None else GenerateBeamDecoderOnlyOutput
            return alone(**common, **self.steps)
        encoder = model_kwargs["encoder_outputs"]
        kind = GenerateEncoderDecoderOutput if beams is None else GenerateBeamEncoderDecoderOutput
        return kind(
            **common,
            scores=self.scores,
            logits=self.steps["logits"],
            encoder_attentions=encoder.get("attentions"),
            encoder_hidden_states=encoder.get("hidden_states"),
            decoder_attentions=self.steps["attentions"],
            cross_attentions=self.cross_attentions,
            decoder_hidden_states=self.steps["hidden_states"],
        )


def _choose(scores: Tensor, *, draw: bool) -> Tensor:
    """Return one token for each row of the scores, (batch,): a drawn one, or the likeliest."""
    if not draw:
        return scores.argmax(dim=-1)
    return torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1).squeeze(1)
