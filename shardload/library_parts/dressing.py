"""What is done to the classes of a part once its file has run: they take configs and calls of older code."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from torch import nn

from shardload.library_parts.completed_config import complete
from shardload.library_parts.gone_arguments import take_gone_arguments
from shardload.library_parts.old_calls import KEEPS_ITS_CACHE, dress_attention, dress_layer, dress_stack

if TYPE_CHECKING:
    from types import ModuleType


def dress(module: ModuleType) -> None:
    """Let the modules of a part take a config of another class, and answer calls of code for transformers 4."""
    own = [kind for kind in vars(module).values() if _is_module(kind) and kind.__module__ == module.__name__]
    rotary = next((kind for kind in own if kind.__name__.endswith("RotaryEmbedding")), None)
    for kind in own:
        _take_older_constructions(kind)
        if "forward" not in vars(kind):
            continue
        rotates = "position_embeddings" in _parameters(kind.forward)
        if rotates and kind.__name__.endswith("Attention"):
            dress_attention(kind, rotary)
        elif any(base.__name__ == "GradientCheckpointingLayer" for base in kind.__mro__[1:]) or (
            rotates and kind.__name__.endswith("Layer")
        ):
            dress_layer(kind, rotary)
        elif kind.__name__.endswith(("Encoder", "Decoder", "Transformer")):
            dress_stack(kind)
        take_gone_arguments(kind)


def _is_module(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, nn.Module)


def _parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def _take_older_constructions(kind: Any) -> None:
    """Complete the config that a class's constructor takes, where it says of which class that is.

    Until 4.35 layers had no numbers, and each kept a cache of its own: such a layer is the first of its cache.
    """
    construct = vars(kind).get("__init__")
    parameters = inspect.signature(construct).parameters if construct else {}
    numbered = "layer_idx" in parameters and parameters["layer_idx"].default is inspect.Parameter.empty
    parameter = parameters.get("config")
    family = parameter.annotation if parameter is not None else None
    if not isinstance(family, type):
        return

    @functools.wraps(construct)
    def completed(self: Any, *args: Any, **kwargs: Any) -> None:
        complete(args[0] if args else kwargs.get("config"), family)
        alone = numbered and len(args) < 2 and "layer_idx" not in kwargs
        construct(self, *args, **kwargs, **({"layer_idx": 0} if alone else {}))
        if alone:
            vars(self)[KEEPS_ITS_CACHE] = True

    kind.__init__ = completed
