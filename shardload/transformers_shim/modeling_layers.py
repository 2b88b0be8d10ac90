"""`transformers.modeling_layers`: the layer of 4.52 and later that does its own gradient checkpointing."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn


class GradientCheckpointingLayer(nn.Module):
    """A layer that is computed again in the backward pass, in training with gradient checkpointing.

    No cache is used then, and tensors that need gradients must be passed by position.
    """

    gradient_checkpointing = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the layer's output."""
        if not (self.gradient_checkpointing and self.training):
            return super().__call__(*args, **kwargs)
        for name in ("past_key_value", "past_key_values", "layer_past"):
            if kwargs.get(name) is not None:
                kwargs[name] = None
        if "use_cache" in kwargs:
            kwargs["use_cache"] = False
        run: Any = self._gradient_checkpointing_func
        return run(functools.partial(super().__call__, **kwargs), *args)
