"""`transformers.modeling_layers`: the layer of 4.52 and later that checkpoints its own gradients."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn


class GradientCheckpointingLayer(nn.Module):
    """A layer that computes again in the backward pass, where gradient checkpointing is on and it is trained.

    No cache is used then. Tensors whose gradients are wanted must be passed by position.
    """

    gradient_checkpointing = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer."""
        if not (self.gradient_checkpointing and self.training):
            return super().__call__(*args, **kwargs)
        for name in ("past_key_value", "past_key_values", "layer_past"):
            if kwargs.get(name) is not None:
                kwargs[name] = None
        if "use_cache" in kwargs:
            kwargs["use_cache"] = False
        run: Any = self._gradient_checkpointing_func
        return run(functools.partial(super().__call__, **kwargs), *args)
