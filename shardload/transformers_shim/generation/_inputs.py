"""From the arguments of `generate` to the first step: ids, masks, lengths, special tokens."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from shardload.transformers_shim.configuration_utils import GENERATION_DEFAULTS
from shardload.transformers_shim.generation._encoder_decoder import has_encoder
from shardload.transformers_shim.generation._processor import token_ids
from shardload.transformers_shim.generation._signatures import parameters, takes_any
from shardload.transformers_shim.generation.configuration_utils import GenerationConfig
from shardload.transformers_shim.utils import logging

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.get_logger(__name__)

# Keyword arguments of `generate` for the loop itself.
_LOOP_KEYWORDS = frozenset({"cache_position", "output_attentions", "output_hidden_states", "return_dict"})


class InputsMixin:
    """The inputs of a model's first step."""

    config: Any
    generation_config: Any
    main_input_name: str
    forward: Any
    prepare_inputs_for_generation: Any
    _names_of_parts: Any
    _get_decoder_start_token_id: Any

    def _prepare_generation_config(self, generation_config: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Return a copy of the settings with `kwargs` applied, and the keyword arguments that are not settings.

        Settings made from the model's config and unchanged since then follow later changes of that config.
        """
        if generation_config is None:
            own = self.generation_config
            from_config = getattr(own, "_from_model_config", False) and getattr(own, "is_unchanged", False)
            if from_config and _sets_generation(self.config):
                self.generation_config = own = GenerationConfig.from_model_config(self.config)
            generation_config = own
        generation_config = copy.deepcopy(generation_config)
        return generation_config, generation_config.update(**kwargs)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Raise ValueError for keyword arguments that neither generation nor the model would use.

        Token types are removed instead: tokenizers return them unasked, and a model that does not take them needs none.
        """
        prepare = self.prepare_inputs_for_generation
        known = parameters(prepare) | _LOOP_KEYWORDS
        if has_encoder(self.config):
            known |= self._names_of_parts()
        if takes_any(prepare):
            if takes_any(self.forward):
                return
            known |= parameters(self.forward)
        if "token_type_ids" not in known:
            model_kwargs.pop("token_type_ids", None)
        unused = sorted(
            name for name, value in model_kwargs.items() if value is not None and name not in known
        )
        if unused:
            raise ValueError(
                f"generate was given {', '.join(unused)}, which neither its settings nor "
                f"{type(self).__name__} know (a misspelt name, or a tokenizer's output that the model does not take)"
            )

    def _prepare_model_inputs(
        self, inputs: Any = None, bos_token_id: Any = None, model_kwargs: dict[str, Any] | None = None
    ) -> tuple[Any, str, dict[str, Any]]:
        """Return (the inputs, their name, the other keyword arguments).

        Raises ValueError for inputs given twice, and for embeddings that the class does not take.
        """
        name = self._name_of_inputs()
        kwargs = {key: v for key, v in (model_kwargs or {}).items() if v is not None or key != name}
        named = kwargs.pop(name, None)
        if named is not None and inputs is not None:
            raise ValueError(f"the inputs are given twice: as `inputs` and as `{name}`")
        inputs = named if inputs is None else inputs
        if name == "input_ids" and kwargs.get("inputs_embeds") is not None and has_encoder(self.config):
            if inputs is not None:
                raise ValueError("the encoder's inputs are given twice: as ids and as inputs_embeds")
            return kwargs["inputs_embeds"], "inputs_embeds", kwargs
        if name == "input_ids" and kwargs.get("inputs_embeds") is not None:
            if "inputs_embeds" not in parameters(self.prepare_inputs_for_generation):
                raise ValueError(
                    f"inputs_embeds: {type(self).__name__}.prepare_inputs_for_generation does not take them"
                )
            # The embeddings are the prompt of the first step; the ids hold only the new tokens.
            embeds = kwargs["inputs_embeds"]
            if inputs is None:
                inputs = torch.ones((embeds.shape[0], 0), dtype=torch.long, device=embeds.device)
            kwargs["input_ids"] = inputs
            return embeds, "inputs_embeds", kwargs
        return self._maybe_initialize_input_ids_for_generation(inputs, bos_token_id, kwargs), name, kwargs

    def _name_of_inputs(self) -> str:
        """Return the name of the model's input: the encoder's where it differs (pixels, for example)."""
        encoder = getattr(self, "encoder", None) if has_encoder(self.config) else None
        return str(getattr(encoder, "main_input_name", self.main_input_name))

    def _maybe_initialize_input_ids_for_generation(
        self, inputs: Any = None, bos_token_id: Any = None, model_kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the inputs; without any, a start token for each row of the batch."""
        if inputs is not None:
            return inputs
        encoded = (model_kwargs or {}).get("encoder_outputs") if has_encoder(self.config) else None
        if encoded is not None:  # nothing is encoded: ids that only give the batch its size
            return encoded[0].new_full(encoded[0].shape[:2], -100, dtype=torch.long)
        if bos_token_id is None:
            raise ValueError("generate needs input_ids, or a bos_token_id to begin with")
        others = [v for v in (model_kwargs or {}).values() if isinstance(v, torch.Tensor)]
        rows = others[0].shape[0] if others else 1
        device = getattr(self, "device", None)
        return torch.full((rows, 1), token_ids(bos_token_id)[0], dtype=torch.long, device=device)

    def _prepare_attention_mask_for_generation(
        self, inputs: Tensor, pad_token_id: Any, eos_token_id: Any
    ) -> Tensor:
        """Return a mask of ones, (batch, length), with zeros at padding, where padding differs from the end tokens."""
        ones = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        is_ids = inputs.dim() == 2 and inputs.dtype in (torch.int, torch.long)
        pads = token_ids(pad_token_id)
        if not is_ids or not pads or pads[0] in token_ids(eos_token_id):
            return ones
        return inputs.ne(pads[0]).long()

    def _prepare_special_tokens(
        self,
        generation_config: Any,
        kwargs_has_attention_mask: bool | None = None,
        device: Any = None,
    ) -> None:
        """Set the padding token to the first end token where none is set, and add all special tokens as tensors.

        The tensors have the names that code since 4.42 reads: `_eos_token_tensor` (ends,), others scalars.
        """
        if generation_config.pad_token_id is None and generation_config.eos_token_id is not None:
            generation_config.pad_token_id = token_ids(generation_config.eos_token_id)[0]
            if kwargs_has_attention_mask is False:
                logger.info("no attention mask, and ends are the padding: padding in the prompt is not seen")
        if has_encoder(self.config):
            generation_config.decoder_start_token_id = self._get_decoder_start_token_id(
                generation_config.decoder_start_token_id, generation_config.bos_token_id
            )
        for kind in ("bos", "eos", "pad", "decoder_start"):
            ids = token_ids(getattr(generation_config, f"{kind}_token_id", None))
            value = torch.tensor(ids if kind == "eos" else ids[0], device=device) if ids else None
            setattr(generation_config, f"_{kind}_token_tensor", value)

    def _prepare_generated_length(
        self,
        generation_config: Any,
        has_default_max_length: bool = True,
        has_default_min_length: bool = True,  # noqa: ARG002 - the name is the interface
        model_input_name: str = "input_ids",
        input_ids_length: int = 0,
        inputs_tensor: Any = None,
    ) -> Any:
        """Return the settings with counts of new tokens made lengths of the ids that `generate` returns."""
        prompt_is_embeds = model_input_name == "inputs_embeds" and not has_encoder(self.config)
        is_embeds = prompt_is_embeds and inputs_tensor.shape[1] != input_ids_length
        embeds_length = inputs_tensor.shape[1] if is_embeds else 0
        if generation_config.max_new_tokens is not None:
            generation_config.max_length = generation_config.max_new_tokens + input_ids_length
        elif embeds_length:
            generation_config.max_length -= embeds_length
        elif has_default_max_length and generation_config.max_length == GENERATION_DEFAULTS["max_length"]:
            logger.warning(
                "no max_new_tokens: the text ends at %s tokens, prompt included", generation_config.max_length
            )
        if generation_config.min_new_tokens is not None:
            generation_config.min_length = generation_config.min_new_tokens + input_ids_length
        elif embeds_length:
            generation_config.min_length = max(generation_config.min_length - embeds_length, 0)
        return generation_config

    def _validate_generated_length(
        self, generation_config: Any, input_ids_length: int, has_default_max_length: bool = True
    ) -> None:
        """Warn about a prompt that leaves no room for new tokens."""
        del has_default_max_length
        longest = generation_config.max_length
        if longest is not None and input_ids_length >= longest:
            logger.warning(
                "the prompt has %s tokens and max_length is %s: one token is generated; raise max_new_tokens",
                input_ids_length,
                longest,
            )

    @staticmethod
    def _expand_inputs_for_generation(
        expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **model_kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Return ids and keyword arguments with each row repeated `expand_size` times, copies side by side."""

        def expand(values: Any) -> dict[str, Any]:
            return {
                name: value.repeat_interleave(expand_size, dim=0)
                if isinstance(value, torch.Tensor) and name != "cache_position"
                else value
                for name, value in values.items()
            }

        if expand_size > 1:
            input_ids = None if input_ids is None else input_ids.repeat_interleave(expand_size, dim=0)
            model_kwargs = expand(model_kwargs)
            if is_encoder_decoder:
                encoded = model_kwargs["encoder_outputs"]
                model_kwargs["encoder_outputs"] = type(encoded)(**expand(encoded))
        return input_ids, model_kwargs


def _sets_generation(config: Any) -> bool:
    """Return whether a model's config has a setting of generation that is not the default."""
    return any(getattr(config, name, default) != default for name, default in GENERATION_DEFAULTS.items())
