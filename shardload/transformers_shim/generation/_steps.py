"""Between two steps: the keyword arguments of the next forward pass, and the values kept from the last."""

from __future__ import annotations

import re
import sys
from typing import Any, NoReturn

import torch

from shardload.errors import UnsupportedError
from shardload.transformers_shim._callers import unpacks_two
from shardload.transformers_shim.cache_utils import Cache, DynamicCache, EncoderDecoderCache, HybridCache
from shardload.transformers_shim.generation._encoder_decoder import has_encoder
from shardload.transformers_shim.generation._signatures import (
    accepted,
    knows,
    parameters,
    takes_any,
)

# The names of a cache in outputs, and the name under which the next step gets it.
_CACHES = {
    "past_key_values": "past_key_values",
    "mems": "past_key_values",
    "past_buckets_states": "past_key_values",
    "cache_params": "cache_params",
}


class StepsMixin:
    """The hooks around a forward pass, which model classes override."""

    config: Any
    forward: Any
    device: Any
    dtype: Any

    def prepare_inputs_for_generation(
        self,
        input_ids: Any,
        past_key_values: Any = None,
        attention_mask: Any = None,
        inputs_embeds: Any = None,
        cache_position: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the next forward pass's keyword arguments, for classes without a method of their own.

        Classes since 4.45 leave this to the base class. It passes the ids that are not in the cache, positions counted
        along the attention mask, and the other arguments that `forward` takes.
        """
        has_state = past_key_values is not None or kwargs.get("cache_params") is not None
        if has_state and cache_position is not None and input_ids.shape[1] != cache_position.shape[0]:
            unseen = input_ids[:, -cache_position.shape[0] :]
        else:
            unseen = input_ids
        encodes = has_encoder(self.config)
        first = not has_state or cache_length(past_key_values) == 0
        if inputs_embeds is not None and first and not encodes:
            inputs = {"input_ids": None, "inputs_embeds": inputs_embeds}
            length = inputs_embeds.shape[1]
        else:
            inputs, length = {"decoder_input_ids": unseen}, unseen.shape[1]
            if not encodes:  # a class's own method looks at both
                inputs = {"input_ids": unseen, "inputs_embeds": None}
        # With an encoder, its mask is passed as it is, and positions are the decoder's.
        mask, name = attention_mask, "position_ids"
        if encodes:
            mask, name = kwargs.get("decoder_attention_mask"), "decoder_position_ids"
        if mask is not None and kwargs.get(name) is None:
            positions = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 1)
            kwargs[name] = positions[:, -length:]
        elif kwargs.get(name) is not None:
            kwargs[name] = kwargs[name][..., -length:]
        inputs |= {
            **kwargs,
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "cache_position": cache_position,
        }
        # A forward with **kwargs passes them on to layers, which may not take what it does not name itself.
        known = parameters(self.forward)
        return {name: value for name, value in inputs.items() if name in known}

    def _model_inputs(self, input_ids: Any, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the next forward pass's keyword arguments from the class's own hook."""
        prepare = self.prepare_inputs_for_generation
        names = parameters(prepare)
        if "past" in names and "past_key_values" not in names and not written_for(self.config, (4, 26)):
            # Later releases pass the cache under its new name only: code written for them that takes the old name has
            # never run with a cache, and some of it is wrong with one.
            cache = model_kwargs.get("past_key_values", model_kwargs.get("past"))
            model_kwargs = {**model_kwargs, "past": cache}
            model_kwargs.pop("past_key_values", None)
        inputs: dict[str, Any] = prepare(input_ids, **accepted(prepare, model_kwargs))
        return inputs

    def _extract_past_from_model_output(self, outputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the cache of an output: with its name, unless the caller passes `standardize_cache_format`.

        Releases before 4.42 took that argument and returned the bare cache; later ones return (name, cache), and 4.42
        and 4.43 still took the argument. Code calls this in the form of its own release; where it unpacks the result
        into two, it gets the pair.
        """
        found = next((name for name in _CACHES if name in outputs), None)
        cache = None if found is None else outputs[found]
        standardize = bool(args and args[0]) or kwargs.get("standardize_cache_format", False)
        if standardize and hasattr(self, "_convert_to_standard_cache"):
            cache = self._convert_to_standard_cache(cache, batch_size=outputs.logits.shape[0])
        by_old_form = args or "standardize_cache_format" in kwargs
        if by_old_form and not unpacks_two(sys._getframe(1)):
            return cache
        return _CACHES.get(found or "", "past_key_values"), cache

    def _update_model_kwargs_for_generation(
        self,
        outputs: Any,
        model_kwargs: dict[str, Any],
        is_encoder_decoder: bool = False,
        standardize_cache_format: bool = False,
        num_new_tokens: int = 1,
        **_kwargs: Any,
    ) -> dict[str, Any]:
        """Return the keyword arguments with the new cache, and with masks and token types one token longer."""
        taken = self._extract_past_from_model_output
        if "standardize_cache_format" in parameters(taken):
            model_kwargs["past_key_values"] = taken(
                outputs, standardize_cache_format=standardize_cache_format
            )
        else:
            options = {"standardize_cache_format": True} if standardize_cache_format else {}
            answer = taken(outputs, **options)
            name, cache = ("past_key_values", answer) if options else answer
            model_kwargs[name] = cache
        if getattr(outputs, "state", None) is not None:
            model_kwargs["state"] = outputs.state
        if model_kwargs.get("token_type_ids") is not None:
            types = model_kwargs["token_type_ids"]
            model_kwargs["token_type_ids"] = torch.cat([types, types[:, -1:]], dim=-1)
        mask_name = "decoder_attention_mask" if is_encoder_decoder else "attention_mask"
        if model_kwargs.get(mask_name) is not None:
            mask = model_kwargs[mask_name]
            model_kwargs[mask_name] = torch.cat(
                [mask, mask.new_ones((mask.shape[0], num_new_tokens))], dim=-1
            )
        position = model_kwargs.get("cache_position")
        if model_kwargs.get("use_cache", True) and position is not None:
            model_kwargs["cache_position"] = position[-1:] + num_new_tokens
        return model_kwargs

    def _after_step(
        self, outputs: Any, model_kwargs: dict[str, Any], model_inputs: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the keyword arguments of the next step from the class's own hook."""
        update = self._update_model_kwargs_for_generation
        options = {"is_encoder_decoder": has_encoder(self.config)}
        if "model_inputs" in parameters(update):
            options["model_inputs"] = model_inputs  # type: ignore[assignment]  # 4.39 and 4.40 gave it
        kwargs: dict[str, Any] = update(outputs, model_kwargs, **accepted(update, options))
        return kwargs

    def _get_initial_cache_position(self, tokens: Any, *more: Any) -> dict[str, Any]:
        """Return the keyword arguments with the positions of the first step's tokens.

        Called as (ids, keyword arguments), or since 4.53 as (length, device, keyword arguments).
        """
        model_kwargs: dict[str, Any] = more[-1]
        is_length = len(more) == 2
        if not is_length and not model_kwargs.get("use_cache", True):
            return {**model_kwargs, "cache_position": None}
        encodes = has_encoder(self.config)
        embeds = model_kwargs.get("decoder_inputs_embeds" if encodes and is_length else "inputs_embeds")
        length, device = (tokens, more[0]) if is_length else (tokens.shape[-1], tokens.device)
        if embeds is not None and (is_length or not encodes):
            length = embeds.shape[1]
        past = min(cache_length(model_kwargs.get("past_key_values")), max(length - 1, 0))
        return {**model_kwargs, "cache_position": torch.arange(past, length, device=device)}

    def _with_first_positions(self, input_ids: Any, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments, with the positions of the first step's tokens where the class knows them."""
        if not knows(self.prepare_inputs_for_generation, "cache_position"):
            passed_on = takes_any(self.prepare_inputs_for_generation)
            if not passed_on or "cache_position" not in parameters(self.forward):
                return model_kwargs
        hook = self._get_initial_cache_position
        if "device" in parameters(hook):  # the class's own, in the form of 4.53
            found: dict[str, Any] = hook(input_ids.shape[-1], input_ids.device, model_kwargs)
            return found
        return hook(input_ids, model_kwargs)

    def _last_logits_only(self, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments, with a request for the last token's logits alone where `forward` takes one.

        The logits of a whole prompt are (length, vocabulary).
        """
        names = parameters(self.forward) & {"logits_to_keep", "num_logits_to_keep"}
        return {**dict.fromkeys(names, 1), **model_kwargs}

    def _initial_cache(self, settings: Any, rows: int, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments, with an empty cache object for classes that expect `generate` to make it.

        A class that prepares its own inputs makes its own cache, and may take a cache as the sign that the first step
        is over. A class written for 4.42 or later does not, as `generate` made its cache, unless it has a kind of its
        own.
        """
        prepare = type(self).prepare_inputs_for_generation
        leaves_it = prepare is StepsMixin.prepare_inputs_for_generation or (
            written_for(self.config, (4, 42)) and not _makes_a_cache(prepare)
        )
        leaves_it = leaves_it and getattr(self, "_supports_cache_class", False)
        hybrid = getattr(settings, "cache_implementation", None) == "hybrid"
        absent = model_kwargs.get("past_key_values") is None
        if not ((leaves_it or hybrid) and absent and model_kwargs.get("use_cache", True)):
            return model_kwargs
        if "past_key_values" not in parameters(self.forward):
            return model_kwargs
        if hybrid:
            config = self.config.get_text_config()
            made = HybridCache(config, rows, settings.max_length - 1, self.device, self.dtype)
            return {**model_kwargs, "past_key_values": made}
        if not has_encoder(self.config):
            return {**model_kwargs, "past_key_values": DynamicCache()}
        return {**model_kwargs, "past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())}

    def _reorder_cache(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse: classes that can reorder their cache for beam search define it."""
        raise UnsupportedError(
            f"beam search reorders the cache, and {type(self).__name__} does not define _reorder_cache",
            cure="use_cache=False, or num_beams=1",
        )


def cache_length(cache: Any) -> int:
    """Return how many tokens a cache object or an old tuple of (batch, heads, length, size) holds; 0 for none."""
    if isinstance(cache, Cache) or hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    try:
        return int(cache[0][0].shape[-2])
    except (TypeError, IndexError, KeyError, AttributeError):
        return 0


def written_for(config: Any, release: tuple[int, int]) -> bool:
    """Return whether the config was saved by this release of transformers or a later one."""
    version = re.match(r"(\d+)\.(\d+)", str(getattr(config, "transformers_version", None)))
    return version is not None and (int(version[1]), int(version[2])) >= release


def _makes_a_cache(function: Any) -> bool:
    """Return whether a function of the repo names a cache class that the stand-in does not have."""
    code = getattr(function, "__code__", None)
    named = (function.__globals__.get(name) for name in code.co_names) if code else ()
    kinds = [found for found in named if isinstance(found, type) and issubclass(found, Cache)]
    stand_in = Cache.__module__.rpartition(".")[0]
    return any(not kind.__module__.startswith(f"{stand_in}.") for kind in kinds)
