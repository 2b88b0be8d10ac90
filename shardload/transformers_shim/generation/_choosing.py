"""From settings to processors, warpers and stopping criteria, in the order in which they apply."""

from __future__ import annotations

from typing import Any

from shardload.errors import UsageError
from shardload.transformers_shim._missing import later, refuse_unknown
from shardload.transformers_shim.generation import logits_process as process
from shardload.transformers_shim.generation._processor import LogitsProcessorList, token_ids
from shardload.transformers_shim.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from shardload.transformers_shim.utils import logging

logger = logging.get_logger(__name__)

# Settings that read the prompt's ids, with the values at which they do nothing.
_FOR_GUIDANCE = ("device", "model_kwargs", "negative_prompt_ids", "negative_prompt_attention_mask")
_BY_PROMPT = {"encoder_repetition_penalty": (None, 1.0), "encoder_no_repeat_ngram_size": (None, 0)}


class ChoosingMixin:
    """The processors of a step's scores, and the criteria that end generation."""

    config: Any

    def _get_logits_processor(
        self,
        generation_config: Any,
        input_ids_seq_length: int = 0,
        encoder_input_ids: Any = None,
        prefix_allowed_tokens_fn: Any = None,
        logits_processor: Any = None,
        **kwargs: Any,
    ) -> LogitsProcessorList:
        """Return the processors that the settings ask for, followed by the caller's own.

        Raises ValueError where the caller's list has one of a class that the settings ask for too.
        """
        refuse_unknown("_get_logits_processor", kwargs, _FOR_GUIDANCE)

        def setting(name: str) -> Any:
            return getattr(generation_config, name, None)

        if setting("guidance_scale") not in (None, 1):
            later("guidance_scale", "leave it out")
        chosen = [
            *_repetition(setting, encoder_input_ids),
            *_lengths(setting, input_ids_seq_length),
            *_constraints(setting, prefix_allowed_tokens_fn),
            *_endings(setting, input_ids_seq_length),
        ]
        processors = _merged(LogitsProcessorList(chosen), logits_processor, "logits processor")
        if setting("renormalize_logits") is True:
            processors.append(process.LogitNormalization())
        return LogitsProcessorList(processors)

    def _get_logits_warper(self, generation_config: Any, device: Any = None) -> LogitsProcessorList:
        """Return the warpers for sampling that the settings ask for."""
        del device

        def setting(name: str, default: Any) -> Any:
            value = getattr(generation_config, name, None)
            return default if value is None else value

        beams = setting("num_beams", 1) > 1
        keep = {"min_tokens_to_keep": len(token_ids(setting("eos_token_id", 0))) + 1 if beams else 1}
        warpers = LogitsProcessorList()
        if setting("temperature", 1.0) != 1.0:
            warpers.append(process.TemperatureLogitsWarper(setting("temperature", 1.0)))
        if setting("top_k", 0) != 0:
            warpers.append(process.TopKLogitsWarper(setting("top_k", 0), **keep))
        if setting("top_p", 1.0) < 1.0:
            warpers.append(process.TopPLogitsWarper(setting("top_p", 1.0), **keep))
        if setting("min_p", -1) != -1:
            warpers.append(process.MinPLogitsWarper(setting("min_p", 0), **keep))
        if setting("typical_p", 1.0) < 1.0:
            warpers.append(process.TypicalLogitsWarper(setting("typical_p", 1.0), **keep))
        if 0.0 < setting("epsilon_cutoff", 0.0) < 1.0:
            warpers.append(process.EpsilonLogitsWarper(setting("epsilon_cutoff", 0.0), **keep))
        if 0.0 < setting("eta_cutoff", 0.0) < 1.0:
            warpers.append(process.EtaLogitsWarper(setting("eta_cutoff", 0.0), **keep))
        if setting("renormalize_logits", False) is True:
            warpers.append(process.LogitNormalization())
        return warpers

    def _get_stopping_criteria(
        self, generation_config: Any, stopping_criteria: Any = None, tokenizer: Any = None
    ) -> StoppingCriteriaList:
        """Return the criteria that the settings ask for, followed by the caller's own."""

        def setting(name: str) -> Any:
            return getattr(generation_config, name, None)

        criteria = StoppingCriteriaList()
        if setting("max_length") is not None:
            positions = getattr(self.config, "max_position_embeddings", None)
            criteria.append(MaxLengthCriteria(setting("max_length"), positions))
        if setting("max_time") is not None:
            criteria.append(MaxTimeCriteria(setting("max_time")))
        if setting("stop_strings") is not None:
            if tokenizer is None:
                raise UsageError("stop_strings need the tokenizer", cure="generate(…, tokenizer=tokenizer)")
            criteria.append(StopStringCriteria(tokenizer, setting("stop_strings")))
        if setting("eos_token_id") is not None:
            criteria.append(EosTokenCriteria(setting("eos_token_id")))
        return StoppingCriteriaList(_merged(criteria, stopping_criteria, "stopping criterion"))

    def _merge_criteria_processor_list(self, default_list: Any, custom_list: Any) -> Any:
        """Return both lists as one; raises ValueError where both have an item of the same class."""
        return _merged(default_list, custom_list, "processor or criterion")


def _repetition(setting: Any, prompt: Any) -> list[Any]:
    made: list[Any] = []
    by_prompt = [name for name, off in _BY_PROMPT.items() if setting(name) not in off]
    if by_prompt and not _is_ids(prompt):
        logger.warning("%s: without effect, as the prompt is not given as ids", ", ".join(by_prompt))
    if setting("sequence_bias") is not None:
        made.append(process.SequenceBiasLogitsProcessor(setting("sequence_bias")))
    if "encoder_repetition_penalty" in by_prompt and _is_ids(prompt):
        penalty = setting("encoder_repetition_penalty")
        made.append(process.EncoderRepetitionPenaltyLogitsProcessor(penalty, prompt))
    if setting("repetition_penalty") not in (None, 1.0):
        made.append(process.RepetitionPenaltyLogitsProcessor(setting("repetition_penalty")))
    if (setting("no_repeat_ngram_size") or 0) > 0:
        made.append(process.NoRepeatNGramLogitsProcessor(setting("no_repeat_ngram_size")))
    if "encoder_no_repeat_ngram_size" in by_prompt and _is_ids(prompt):
        size = setting("encoder_no_repeat_ngram_size")
        made.append(process.EncoderNoRepeatNGramLogitsProcessor(size, prompt))
    return made


def _is_ids(prompt: Any) -> bool:
    """Return whether a prompt is ids, not embeddings, pixels, or the placeholder for an input encoded before."""
    return prompt is not None and not prompt.is_floating_point() and bool((prompt >= 0).all())


def _lengths(setting: Any, prompt_length: int) -> list[Any]:
    made: list[Any] = []
    ends = setting("eos_token_id")
    if setting("bad_words_ids") is not None:
        made.append(process.NoBadWordsLogitsProcessor(setting("bad_words_ids"), ends))
    if ends is not None and (setting("min_length") or 0) > 0:
        made.append(process.MinLengthLogitsProcessor(setting("min_length"), ends))
    if ends is not None and (setting("min_new_tokens") or 0) > 0:
        new = setting("min_new_tokens")
        made.append(process.MinNewTokensLengthLogitsProcessor(prompt_length, new, ends))
    return made


def _constraints(setting: Any, prefix_allowed_tokens_fn: Any) -> list[Any]:
    made: list[Any] = []
    if prefix_allowed_tokens_fn is not None:
        made.append(
            process.PrefixConstrainedLogitsProcessor(prefix_allowed_tokens_fn, setting("num_beams") or 1)
        )
    if setting("forced_bos_token_id") is not None:
        made.append(process.ForcedBOSTokenLogitsProcessor(setting("forced_bos_token_id")))
    if setting("forced_eos_token_id") is not None:
        forced = setting("forced_eos_token_id")
        made.append(process.ForcedEOSTokenLogitsProcessor(setting("max_length"), forced))
    if setting("remove_invalid_values") is True:
        made.append(process.InfNanRemoveLogitsProcessor())
    return made


def _endings(setting: Any, prompt_length: int) -> list[Any]:
    made: list[Any] = []
    if setting("exponential_decay_length_penalty") is not None:
        decay = setting("exponential_decay_length_penalty")
        made.append(process.ExponentialDecayLengthPenalty(decay, setting("eos_token_id"), prompt_length))
    if setting("suppress_tokens") is not None:
        made.append(process.SuppressTokensLogitsProcessor(setting("suppress_tokens")))
    forced = setting("forced_decoder_ids")
    if setting("begin_suppress_tokens") is not None:
        # Where the first token is forced, suppression "at the beginning" means the token after it.
        after_start = prompt_length <= 1 and setting("forced_bos_token_id") is not None
        begin = prompt_length + int(after_start) + (forced[-1][0] if forced else 0)
        made.append(process.SuppressTokensAtBeginLogitsProcessor(setting("begin_suppress_tokens"), begin))
    if forced is not None:
        made.append(process.ForceTokensLogitsProcessor(forced))
    return made


def _merged(made: Any, own: Any, kind: str) -> Any:
    """Return the items that the settings ask for and the caller's items as one list."""
    twice = [one for one in own or () if any(type(one) is type(other) for other in made)]
    if twice:
        raise ValueError(
            f"the {kind} {type(twice[0]).__name__} is in the list given to generate, and the settings make one too"
        )
    made.extend(own or ())
    return made
