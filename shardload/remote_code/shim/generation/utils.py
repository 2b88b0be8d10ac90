"""`transformers.generation.utils`: the hooks around generation that model classes override and call."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from shardload.remote_code.shim._missing import later
from shardload.remote_code.shim.generation.configuration_utils import GenerationConfig
from shardload.remote_code.shim.generation.logits_process import LogitsProcessorList
from shardload.remote_code.shim.generation.stopping_criteria import StoppingCriteriaList
from shardload.remote_code.shim.utils.generic import ModelOutput

__all__ = [
    "GenerateOutput",
    "GenerationConfig",
    "GenerationMixin",
    "LogitsProcessorList",
    "ModelOutput",
    "StoppingCriteriaList",
]

GenerateOutput = ModelOutput


class GenerationMixin:
    """What every model class inherits for generation; `generate` itself arrives later."""

    config: Any

    def generate(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse, by name: this version loads models and runs their forward pass."""
        later(
            f"{type(self).__name__}.generate",
            "call the model itself and choose the next token from its logits",
        )

    def _refuse_generation(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        later(f"generation with {type(self).__name__}")

    sample = greedy_search = beam_search = contrastive_search = _refuse_generation
    _get_logits_processor = _get_logits_warper = _get_stopping_criteria = _refuse_generation

    @classmethod
    def can_generate(cls) -> bool:
        """Return whether the class says how its inputs for generation are prepared."""
        return cls.prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation

    def prepare_inputs_for_generation(self, *_args: Any, **_kwargs: Any) -> Any:
        """Return the keyword arguments of the next forward pass; classes that generate define it."""
        raise NotImplementedError(f"{type(self).__name__} does not define prepare_inputs_for_generation")

    def _extract_past_from_model_output(self, outputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the cache of an output; with its name unless the caller speaks of `standardize_cache_format`.

        Releases before 4.42 took that argument and returned the bare cache; later ones return (name, cache).
        Code of both ages calls this by the form it was written for.
        """
        name, cache = "past_key_values", None
        for output_name in ("past_key_values", "mems", "past_buckets_states", "cache_params"):
            if output_name in outputs:
                name = "cache_params" if output_name == "cache_params" else "past_key_values"
                cache = outputs[output_name]
                break
        return cache if args or "standardize_cache_format" in kwargs else (name, cache)

    def _update_model_kwargs_for_generation(
        self,
        outputs: Any,
        model_kwargs: dict[str, Any],
        is_encoder_decoder: bool = False,
        **_kwargs: Any,
    ) -> dict[str, Any]:
        """Return the keyword arguments with the new cache, and with masks and token types one longer."""
        name, cache = GenerationMixin._extract_past_from_model_output(self, outputs)
        model_kwargs[name] = cache
        if model_kwargs.get("token_type_ids") is not None:
            types = model_kwargs["token_type_ids"]
            model_kwargs["token_type_ids"] = torch.cat([types, types[:, -1:]], dim=-1)
        mask_name = "decoder_attention_mask" if is_encoder_decoder else "attention_mask"
        if model_kwargs.get(mask_name) is not None:
            mask = model_kwargs[mask_name]
            model_kwargs[mask_name] = torch.cat([mask, mask.new_ones((mask.shape[0], 1))], dim=-1)
        return model_kwargs

    def _reorder_cache(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse: classes that can reorder their cache for beam search define it."""
        raise NotImplementedError(f"{type(self).__name__} does not define _reorder_cache")
