"""Arguments that models had until 4.57: what they computed is done here, or refused, and never dropped in silence.

Forward methods of transformers 5 take any keyword, and leave out those that they do not know.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch

from shardload.errors import RemoteCodeError
from shardload.library_parts.old_calls import called_by_older
from shardload.library_parts.release import installed

_HEAD_MASKS = frozenset({
    "head_mask", "layer_head_mask", "cross_attn_head_mask", "cross_attn_layer_head_mask", "decoder_head_mask",
})  # fmt: skip
_GONE = _HEAD_MASKS | {"causal_attention_mask", "layer_past"}
_BERT = (
    "hidden_states",
    "attention_mask",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "past_key_values",
)
# The order that a forward method had, by the order that it has: (without cross attention in a decoder, in a decoder).
_OLD_ORDERS = {
    _BERT: (*_BERT[:2], "head_mask", *_BERT[2:], "output_attentions"),
    (*_BERT, "use_cache"): (
        *_BERT[:2], "head_mask", *_BERT[2:], "use_cache", "output_attentions", "output_hidden_states", "return_dict",
    ),
    (*_BERT, "use_cache", "Decoder"): (
        *_BERT[:4], "layer_head_mask", "cross_attn_layer_head_mask", "past_key_values", "output_attentions",
        "use_cache",
    ),
    _BERT[:2]: (*_BERT[:2], "layer_head_mask", "output_attentions"),
    ("inputs_embeds", "attention_mask"): (
        "inputs_embeds", "attention_mask", "causal_attention_mask", "output_attentions",
    ),
}  # fmt: skip


def take_gone_arguments(kind: Any) -> None:
    """Let the forward method of a class take the arguments that releases of 4 had and this one's file has not."""
    forward, parameters = kind.forward, inspect.signature(kind.forward).parameters
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return
    names = tuple(
        name for name, each in parameters.items() if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    )[1:]
    gone = _GONE.difference(names)
    decoder = (*names, "Decoder") if "Decoder" in kind.__name__ else names
    order = _OLD_ORDERS.get(decoder) or _OLD_ORDERS.get(names)
    if order is not None and gone.isdisjoint(order):
        order = None

    @functools.wraps(forward)
    def answering(self: Any, *args: Any, **kwargs: Any) -> Any:
        if order is not None and len(args) > 2 and len(args) <= len(order) and called_by_older():
            kwargs = {**dict(zip(order, args, strict=False)), **kwargs}
            args = ()
            if isinstance(kwargs.get("layer_head_mask"), bool):  # encoders without head masks had it third
                kwargs["output_attentions"] = kwargs.pop("layer_head_mask")
            elif _is_causal_mask(kwargs.get("layer_head_mask")):  # CLIP's encoders had that mask third
                kwargs["causal_attention_mask"] = kwargs.pop("layer_head_mask")
        if not gone.isdisjoint(kwargs):
            args, kwargs = _without(kind, gone, names, args, dict(kwargs))
        return forward(self, *args, **kwargs)

    kind.forward = answering


def _is_causal_mask(value: Any) -> bool:
    """Return whether it is a mask of queries and keys, (batch, 1, queries, keys): masks of heads have other shapes."""
    return isinstance(value, torch.Tensor) and value.dim() == 4 and value.shape[1] == 1 and value.shape[2] > 1


def _without(kind: Any, gone: frozenset[str], names: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    for name in gone.intersection(kwargs):
        value = kwargs.pop(name)
        if value is None or (isinstance(value, (list, tuple)) and all(each is None for each in value)):
            continue
        if name != "causal_attention_mask" or "attention_mask" not in names:
            raise _refusal(kind, name)
        kwargs.update(zip(names, args, strict=False))
        args = ()
        other = kwargs.get("attention_mask")
        kwargs["attention_mask"] = value if other is None else value + other
    return args, kwargs


def _refusal(kind: Any, name: str) -> RemoteCodeError:
    release = installed()
    return RemoteCodeError(
        f"{kind.__name__} of {release.name if release else 'transformers'} has no {name}, which the code passes",
        cure="install a release that has it, where the code needs it: pip install 'transformers<5'",
    )
