"""`transformers.generation.utils`: `generate` as the 4.2x-4.40 releases had it, greedy and sampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from shardload.errors import UnsupportedError
from shardload.transformers_shim._missing import later, refuse_unknown
from shardload.transformers_shim.generation._beams import BeamsMixin
from shardload.transformers_shim.generation._choosing import ChoosingMixin
from shardload.transformers_shim.generation._encoder_decoder import EncoderDecoderMixin, has_encoder
from shardload.transformers_shim.generation._helpers import HelpersMixin
from shardload.transformers_shim.generation._inputs import InputsMixin
from shardload.transformers_shim.generation._loop import LoopMixin
from shardload.transformers_shim.generation._outputs import (
    BeamSampleOutput,
    BeamSearchOutput,
    ContrastiveSearchDecoderOnlyOutput,
    ContrastiveSearchEncoderDecoderOutput,
    ContrastiveSearchOutput,
    GenerateBeamOutput,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
    GenerateNonBeamOutput,
    GenerateOutput,
    GreedySearchDecoderOnlyOutput,
    GreedySearchEncoderDecoderOutput,
    GreedySearchOutput,
    SampleDecoderOnlyOutput,
    SampleEncoderDecoderOutput,
    SampleOutput,
)
from shardload.transformers_shim.generation._signatures import parameters
from shardload.transformers_shim.generation._steps import StepsMixin
from shardload.transformers_shim.generation.configuration_utils import GenerationConfig, GenerationMode
from shardload.transformers_shim.generation.logits_process import *  # noqa: F403 - code imports these here too
from shardload.transformers_shim.generation.logits_process import (
    LogitsProcessorList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from shardload.transformers_shim.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    validate_stopping_criteria,
)
from shardload.transformers_shim.generation.streamers import BaseStreamer
from shardload.transformers_shim.utils import logging
from shardload.transformers_shim.utils.generic import ModelOutput

__all__ = [
    "BaseStreamer",
    "BeamSampleOutput",
    "BeamSearchOutput",
    "ContrastiveSearchDecoderOnlyOutput",
    "ContrastiveSearchEncoderDecoderOutput",
    "ContrastiveSearchOutput",
    "EosTokenCriteria",
    "GenerateBeamOutput",
    "GenerateDecoderOnlyOutput",
    "GenerateEncoderDecoderOutput",
    "GenerateNonBeamOutput",
    "GenerateOutput",
    "GenerationConfig",
    "GenerationMixin",
    "GenerationMode",
    "GreedySearchDecoderOnlyOutput",
    "GreedySearchEncoderDecoderOutput",
    "GreedySearchOutput",
    "LogitsProcessorList",
    "MaxLengthCriteria",
    "MaxTimeCriteria",
    "ModelOutput",
    "SampleDecoderOnlyOutput",
    "SampleEncoderDecoderOutput",
    "SampleOutput",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "top_k_top_p_filtering",
    "validate_stopping_criteria",
]

logger = logging.get_logger(__name__)

# Settings that change which tokens are chosen, or how the prompt is read; a settings file may have them.
_LATER_SETTINGS = ("dola_layers", "token_healing", "top_h", "watermarking_config")

# Code looks up the setting `cache_implementation` here; the stand-in makes none but "hybrid".
NEED_SETUP_CACHE_CLASSES_MAPPING: dict[str, Any] = {}


def top_k_top_p_filtering(
    logits: torch.Tensor,
    top_k: int = 0,
    top_p: float = 1.0,
    filter_value: float = float("-inf"),
    min_tokens_to_keep: int = 1,
) -> torch.Tensor:
    """Return logits, (batch, vocabulary), cut to the likeliest `top_k` and then to the likeliest that reach `top_p`."""
    keep = {"filter_value": filter_value, "min_tokens_to_keep": min_tokens_to_keep}
    if top_k > 0:
        logits = TopKLogitsWarper(top_k, **keep)(None, logits)  # type: ignore[arg-type]  # they look at no ids
    if 0 <= top_p <= 1:
        logits = TopPLogitsWarper(top_p, **keep)(None, logits)  # type: ignore[arg-type]
    return logits


_SHIM = __name__.partition(".generation")[0] + "."
_BEAMS = (GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE)
_DONE = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, *_BEAMS)


class GenerationMixin(
    InputsMixin, EncoderDecoderMixin, ChoosingMixin, StepsMixin, LoopMixin, BeamsMixin, HelpersMixin
):
    """The methods of every model class for generation."""

    @classmethod
    def can_generate(cls) -> bool:
        """Return whether the class prepares its inputs for generation, or has this mixin among its direct bases."""
        own = [kind for kind in cls.__mro__ if not kind.__module__.startswith(_SHIM)]
        return any(
            "prepare_inputs_for_generation" in vars(kind) or GenerationMixin in kind.__bases__ for kind in own
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: Any = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Any = None,
        synced_gpus: bool | None = None,
        assistant_model: Any = None,
        streamer: Any = None,
        negative_prompt_ids: Any = None,
        negative_prompt_attention_mask: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Continue ids, (batch, length), and return them with the new tokens, (batch, longer).

        A model with an encoder reads the ids, and the decoder's ids are returned. Settings come from
        `generation_config` (by default the model's own) and from `kwargs`, which also hold arguments of the forward
        pass. Raises UnsupportedError for generation modes that are not done, and ValueError for arguments that nothing
        takes. An error ends the streamer too, so that its reader does not wait.
        """
        try:
            self._refuse_what_is_not_done(synced_gpus, negative_prompt_ids, negative_prompt_attention_mask)
            settings, model_kwargs = self._settings(generation_config, assistant_model, kwargs)
            return self._generate(
                inputs,
                settings,
                model_kwargs,
                streamer=streamer,
                max_length_given=kwargs.get("max_length") is not None,
                processors=logits_processor,
                criteria=stopping_criteria,
                prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            )
        except BaseException as error:
            _tell(streamer, error)
            raise

    def _refuse_what_is_not_done(self, synced_gpus: Any, *negative_prompt: Any) -> None:
        self._validate_model_class()
        if synced_gpus:
            raise UnsupportedError("generate with synced_gpus, for parameters that are spread over machines")
        if any(given is not None for given in negative_prompt):
            raise UnsupportedError("generate with a negative prompt", cure="leave it out")

    def _settings(
        self, generation_config: Any, assistant_model: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Return the settings of this call and the other keyword arguments, both checked."""
        tokenizer = kwargs.pop("tokenizer", None)
        if kwargs.pop("custom_generate", None) is not None:
            later(
                "generate(custom_generate=…)",
                "call that function with the model; a folder of the repo's is used by itself",
            )
        settings, model_kwargs = self._prepare_generation_config(generation_config, **kwargs)
        refuse_unknown("generate", {name: getattr(settings, name, None) for name in _LATER_SETTINGS})
        if getattr(settings, "cache_implementation", None) == "quantized":
            later("cache_implementation='quantized'", "leave it out")
        mode = settings.get_generation_mode(assistant_model)
        if mode not in _DONE:
            raise UnsupportedError(
                f"generate with {mode.value.replace('_', ' ')}; greedy search, sampling and beam search are done",
                cure="num_beam_groups=1, and no assistant_model, constraints or penalty_alpha",
            )
        if mode is GenerationMode.GREEDY_SEARCH and (settings.num_return_sequences or 1) > 1:
            raise ValueError("greedy search has one answer: num_return_sequences needs do_sample=True")
        if mode in _BEAMS and (settings.num_return_sequences or 1) > settings.num_beams:
            raise ValueError(
                f"num_return_sequences={settings.num_return_sequences} of num_beams={settings.num_beams}: "
                "beam search returns no more than it has beams"
            )
        self._validate_model_kwargs(model_kwargs)
        return settings, {**model_kwargs, "tokenizer": tokenizer} if tokenizer is not None else model_kwargs

    def _generate(
        self,
        inputs: Any,
        settings: Any,
        model_kwargs: dict[str, Any],
        *,
        streamer: Any,
        max_length_given: bool,
        processors: Any,
        criteria: Any,
        prefix_allowed_tokens_fn: Any,
    ) -> Any:
        tokenizer = model_kwargs.pop("tokenizer", None)
        has_mask = model_kwargs.get("attention_mask") is not None
        encoded, encodes = model_kwargs.get("encoder_outputs") is not None, has_encoder(self.config)
        start = settings.bos_token_id
        first, name, model_kwargs = self._prepare_model_inputs(inputs, start, model_kwargs)
        _require_batch(first, name)
        self._prepare_special_tokens(settings, has_mask, device=first.device)
        # With embeddings, a decoder alone knows by the cache that the first step is over.
        model_kwargs["use_cache"] = True if name == "inputs_embeds" and not encodes else settings.use_cache
        if not has_mask and not encoded and "attention_mask" in parameters(self.forward):
            model_kwargs["attention_mask"] = self._prepare_attention_mask_for_generation(
                first, settings.pad_token_id, settings.eos_token_id
            )
        if encodes:
            input_ids, model_kwargs = self._begin_decoding(first, name, settings, model_kwargs)
        else:
            input_ids = model_kwargs.pop("input_ids") if name == "inputs_embeds" else first
        by_beams = settings.get_generation_mode() in _BEAMS
        if streamer is not None and by_beams:
            raise ValueError("a streamer needs num_beams=1: beam search has its text only at the end")
        if streamer is not None:
            streamer.put(input_ids.cpu())
        length = input_ids.shape[-1]
        settings = self._prepare_generated_length(
            generation_config=settings,
            has_default_max_length=not max_length_given,
            has_default_min_length=True,
            model_input_name=name,
            input_ids_length=length,
            inputs_tensor=first,
        )
        self._validate_generated_length(settings, length, not max_length_given)
        made = self._get_logits_processor(
            generation_config=settings,
            input_ids_seq_length=length,
            encoder_input_ids=first if encodes else input_ids,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            logits_processor=LogitsProcessorList() if processors is None else processors,
        )
        options = {} if tokenizer is None else {"tokenizer": tokenizer}
        ends = self._get_stopping_criteria(
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList() if criteria is None else criteria,
            **options,
        )
        warper = self._get_logits_warper(settings) if settings.do_sample else None
        input_ids, model_kwargs = self._expand_inputs_for_generation(
            expand_size=settings.num_beams if by_beams else settings.num_return_sequences or 1,
            is_encoder_decoder=encodes,
            input_ids=input_ids,
            **model_kwargs,
        )
        run = self._run_beams if by_beams else self._run_loop
        return run(
            settings,
            input_ids,
            self._last_logits_only(self._initial_cache(settings, input_ids.shape[0], model_kwargs)),
            logits_processor=made,
            logits_warper=warper,
            stopping_criteria=ends,
            streamer=streamer,
        )

    def _run_loop(
        self,
        settings: Any,
        input_ids: Any,
        model_kwargs: dict[str, Any],
        *,
        logits_warper: Any,
        **common: Any,
    ) -> Any:
        """Run the loop: the class's own where it has one, with the arguments of that loop's release."""
        warp = {"logits_warper": logits_warper} if settings.do_sample else {}
        # 4.39 and 4.40 had the greedy loop under a private name; later releases have one loop for both.
        names = ("sample",) if settings.do_sample else ("greedy_search", "_greedy_search")
        differs = (getattr(type(self), n, None) is not getattr(GenerationMixin, n, None) for n in names)
        name = next((n for n, own in zip(names, differs, strict=True) if own), None)
        if name is None:
            options = {"generation_config": settings, "synced_gpus": False, **common, **warp}
            return self._sample(input_ids, **options, **model_kwargs)
        old = ("pad_token_id", "eos_token_id", "output_scores", "return_dict_in_generate")
        options = {key: getattr(settings, key) for key in old} | {"synced_gpus": False, **common, **warp}
        return getattr(self, name)(input_ids, **options, **model_kwargs)


def _require_batch(inputs: Any, name: str) -> None:
    """Raise TypeError or ValueError with what to pass, for inputs that are not a tensor of (batch, length, …)."""
    if isinstance(inputs, Mapping):
        raise TypeError(f"generate takes a tokenizer's output with two stars: generate(**{name}, …)")
    if not isinstance(inputs, torch.Tensor):
        raise TypeError(
            f"generate takes {name} as a tensor, not as a {type(inputs).__name__}: "
            'tokenizer(text, return_tensors="pt") makes one of a text'
        )
    if inputs.dim() < 2:
        raise ValueError(
            f"generate takes {name} of (batch, length), not of {tuple(inputs.shape)}: x[None] is a batch"
        )


def _tell(streamer: Any, error: BaseException) -> None:
    """End a streamer whose generation failed, as its reader would wait forever."""
    if streamer is None:
        return
    try:
        streamer.fail(error) if hasattr(streamer, "fail") else streamer.end()
    except Exception as second:  # noqa: BLE001 - the first error is the one to raise
        logger.warning("the streamer failed too: %s", second)
