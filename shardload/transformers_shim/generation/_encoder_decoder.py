"""The first step of `generate` for a model with an encoder: it runs once, and the decoder's ids begin."""

from __future__ import annotations

from typing import Any

import torch

from shardload.transformers_shim.generation._processor import token_ids
from shardload.transformers_shim.generation._signatures import accepted, parameters
from shardload.transformers_shim.modeling_outputs import BaseModelOutput

# Keyword arguments of the model that are not for its encoder.
_DECODERS_OWN = ("decoder_", "cross_attn", "use_cache")


class EncoderDecoderMixin:
    """The encoder's pass and the decoder's first ids, under the names that classes override."""

    config: Any
    generation_config: Any
    main_input_name: str

    def _begin_decoding(
        self, inputs: torch.Tensor, name: str, settings: Any, model_kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return (the decoder's first ids, the keyword arguments with `encoder_outputs`).

        The encoder runs unless the caller passed its outputs.
        """
        if model_kwargs.get("encoder_outputs") is None:
            encode = self._prepare_encoder_decoder_kwargs_for_generation
            options = {"model_input_name": name, "generation_config": settings}
            model_kwargs = encode(inputs, model_kwargs, **accepted(encode, options))
        elif not isinstance(model_kwargs["encoder_outputs"], dict):
            model_kwargs["encoder_outputs"] = BaseModelOutput(*model_kwargs["encoder_outputs"])
        begin = self._prepare_decoder_input_ids_for_generation
        options = {
            "batch_size": inputs.shape[0],
            "model_input_name": name,
            "model_kwargs": model_kwargs,
            "decoder_start_token_id": settings.decoder_start_token_id,
            "bos_token_id": settings.bos_token_id,
            "device": inputs.device,
        }
        made = begin(**accepted(begin, options))
        # Before 4.29 this hook returned the ids alone.
        return made if isinstance(made, tuple) else (made, model_kwargs)

    def _prepare_encoder_decoder_kwargs_for_generation(
        self,
        inputs_tensor: torch.Tensor,
        model_kwargs: dict[str, Any],
        model_input_name: str | None = None,
        generation_config: Any = None,
    ) -> dict[str, Any]:
        """Run the encoder on the keyword arguments that it takes, and add its outputs to them."""
        encoder: Any = self.get_encoder()  # type: ignore[attr-defined]  # classes with an encoder define it
        given = {n: value for n, value in model_kwargs.items() if not n.startswith(_DECODERS_OWN)}
        for wanted in ("output_attentions", "output_hidden_states"):
            given[wanted] = bool(getattr(generation_config, wanted, False))
        given = accepted(encoder.forward, {**given, "return_dict": True})
        given[model_input_name or self.main_input_name] = inputs_tensor
        model_kwargs["encoder_outputs"] = encoder(**given)
        return model_kwargs

    def _get_decoder_start_token_id(
        self, decoder_start_token_id: Any = None, bos_token_id: Any = None
    ) -> Any:
        """Return the decoder's first token: the given one, the model's own, or the `bos_token_id`."""
        own = self.generation_config
        candidates = (
            decoder_start_token_id,
            getattr(own, "decoder_start_token_id", None),
            bos_token_id,
            getattr(own, "bos_token_id", None),
        )
        return next((token for token in candidates if token is not None), None)

    def _prepare_decoder_input_ids_for_generation(
        self,
        batch_size: int,
        model_input_name: str = "input_ids",
        model_kwargs: dict[str, Any] | None = None,
        decoder_start_token_id: Any = None,
        bos_token_id: Any = None,
        device: Any = None,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return (the decoder's first ids, the other keyword arguments); both begin with the start token.

        The start token is put before given `decoder_input_ids`, or `input_ids` where the encoder reads something else,
        and into their mask, unless a row has it already. Raises ValueError where there is no start token.
        """
        kwargs = model_kwargs if model_kwargs is not None else {}
        given = kwargs.pop("decoder_input_ids", None)
        if given is None and model_input_name != "input_ids":
            given = kwargs.pop("input_ids", None)
        first = self._get_decoder_start_token_id(decoder_start_token_id, bos_token_id)
        if first is None:
            raise ValueError(
                "generate with an encoder and a decoder needs decoder_start_token_id or bos_token_id"
            )
        start = _a_row_each(first, batch_size).to(device)
        if given is None:
            return start, kwargs
        if bool((given[:, 0] == start[:, 0]).any()):
            return given, kwargs
        mask = kwargs.get("decoder_attention_mask")
        if mask is not None:
            kwargs["decoder_attention_mask"] = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=-1)
        return torch.cat([start, given], dim=-1), kwargs

    def _names_of_parts(self) -> set[str]:
        """Return the names that `generate` may get for the encoder, and for the decoder with its prefix."""
        names = {"decoder_input_ids", "encoder_outputs"}
        base = getattr(self, getattr(self, "base_model_prefix", "") or "base_model", None)
        for part, prefix in (("encoder", ""), ("decoder", "decoder_")):
            module = getattr(self, part, None) or getattr(base, part, None)
            if module is not None:
                names |= {f"{prefix}{name}" for name in parameters(module.forward)}
        return names


def has_encoder(config: Any) -> bool:
    """Return whether a model of this config reads with an encoder and writes with a decoder."""
    return bool(getattr(config, "is_encoder_decoder", False))


def _a_row_each(start: Any, rows: int) -> torch.Tensor:
    """Return start tokens, (rows, 1), from one for all rows or a list with one for each."""
    every = token_ids(start)
    several = start.dim() > 0 if isinstance(start, torch.Tensor) else isinstance(start, (list, tuple))
    if several and len(every) != rows:
        raise ValueError(f"decoder_start_token_id has {len(every)} tokens for a batch of {rows}")
    return torch.tensor(every if several else every * rows, dtype=torch.long)[:, None]
