"""Masks that a repo's class makes in a method which releases of 4 called, and which today's forward does not call."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch

# The first was called by decoders of 4.38 to 4.57, the second until 4.35.
_METHODS = ("_update_causal_mask", "_prepare_decoder_attention_mask")


def use_own_mask(cls: Any) -> None:
    """Let a class's inherited forward use the mask of the class's own method, where the file no longer asks for it.

    Without that the mask would be the library's, in silence: causal where the class attends both ways.
    """
    name = next((each for each in _METHODS if each in vars(cls)), None)
    if name is None or "forward" in vars(cls) or any(hasattr(base, name) for base in cls.__bases__):
        return
    forward = cls.forward
    names = list(inspect.signature(forward).parameters)[1:]
    if not {"input_ids", "attention_mask", "inputs_embeds"}.issubset(names):
        return
    takes = list(inspect.signature(vars(cls)[name]).parameters)[1:]

    @functools.wraps(forward)
    def masking(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if given.get("inputs_embeds") is None:
            given["inputs_embeds"] = self.get_input_embeddings()(given.pop("input_ids"))
        states, past = given["inputs_embeds"], given.get("past_key_values")
        seen = 0 if past is None else past.get_seq_length()
        known = {
            **given,
            "input_tensor": states,
            "input_shape": states.shape[:2],
            "cache_position": torch.arange(seen, seen + states.shape[1], device=states.device),
            "past_key_values_length": seen,
            "past_seen_tokens": seen,
        }
        given["attention_mask"] = getattr(self, name)(**{each: known.get(each) for each in takes})
        return forward(self, **given)

    cls.forward = masking
