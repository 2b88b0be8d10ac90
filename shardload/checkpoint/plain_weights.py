"""Plain weights of a quantised checkpoint: each packed weight is decoded while it is read."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from shardload.checkpoint.json_file import read_object
from shardload.dequantise import Stored, Weight, packed_weights
from shardload.dequantise.fp8 import just_cast
from shardload.dequantise.signatures import CONFIG_FIELDS
from shardload.dtypes import float_code
from shardload.errors import CorruptError, UsageError, Wording
from shardload.keymap.dequantised import Dequantised
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import torch

    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.keymap import Derived

QUANTISER_FILES = ("quantize_config.json", "quant_config.json")
"""Files in which older quantisers say what config.json says elsewhere."""
_OF_CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
_CONV1D = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
# The types of models that have transformers' Conv1D, whose weight is (inputs, outputs), and the names of such layers.


def dequantised(checkpoint: Checkpoint, dtype: str | torch.dtype) -> Checkpoint:
    """Return the checkpoint as if its packed weights were stored plain, in a dtype; only headers are read now.

        >>> from pathlib import Path
        >>> import torch, shardload
        >>> packed = {
        ...     "qweight": torch.full((1, 8), 0x76543210, dtype=torch.int32),
        ...     "qzeros": torch.full((1, 1), 0x33333333, dtype=torch.int32),
        ...     "scales": torch.full((1, 8), 0.5, dtype=torch.float16),
        ... }
        >>> torch.save({f"up.{name}": tensor for name, tensor in packed.items()}, "model.bin")
        >>> size = Path("quantize_config.json").write_text('{"bits": 4, "group_size": 8}')
        >>> plain = shardload.dequantised(shardload.open_checkpoint("."), "bfloat16")
        >>> plain.packing, dict(plain.items())["up.weight"][0].tolist()
        ('GPTQ', [-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5])

    `fill`, `convert`, `plan_load` and `items` take the result as any other checkpoint; its config names no quantiser.
    The tensors of a GGUF file of an architecture that is known get the names that transformers has.
    Any rows of a weight are decoded alone. A checkpoint without packed weights is returned as it is. Raises
    CorruptError for parts that do not fit together, UnsupportedError for a packing that is known by name only.
    """
    code = float_code(dtype)
    if code is None:
        raise UsageError(
            Wording("{dtype} is no dtype to dequantise to", dtype=dtype),
            cure='pass "bfloat16", "float16" or "float32"',
        )
    weights = weights_in(checkpoint)
    if not weights and checkpoint.format != "gguf":
        return checkpoint
    return with_plain(checkpoint, weights, code, turned=_turned_by_type(checkpoint.config))


def weights_in(checkpoint: Checkpoint) -> list[Weight]:
    """Return the packed weights of a checkpoint that can be made plain."""
    return [] if checkpoint.packing else packed_weights(_headers(checkpoint))


def just_cast_in(checkpoint: Checkpoint) -> list[Weight]:
    """Return the weights in fp8 of a checkpoint in which nothing has or wants scales: they were cast, and no more."""
    return [] if checkpoint.packing else list(just_cast(_headers(checkpoint)))


def _headers(checkpoint: Checkpoint) -> Stored:
    config = checkpoint.config or {}
    stored = {name: ref for name, ref in checkpoint.tensors.items() if isinstance(ref, TensorRef)}

    def read(ref: TensorRef) -> bytes:
        return checkpoint.source.open(ref.shard).read_at(ref.span.start, ref.span.nbytes)

    kinds = json.loads(checkpoint.metadata["gguf"])["types"] if "gguf" in checkpoint.metadata else {}
    return Stored(stored, _settings(checkpoint, config), read, config, kinds)


def _turned_by_type(config: Mapping[str, Any] | None) -> frozenset[str]:
    """Return the layers whose own weight is (inputs, outputs), by the last segment of their names, for a known type."""
    return _CONV1D if (config or {}).get("model_type") in _OF_CONV1D else frozenset()


def with_plain(
    checkpoint: Checkpoint,
    weights: Sequence[Weight],
    code: str,
    *,
    renamed: bool = True,
    turned: Collection[str] = (),
) -> Checkpoint:
    """Return the checkpoint with these weights plain, in the dtype of a code, and without what names a quantiser.

    `renamed`: the tensors of a GGUF file get the names that transformers has. `turned` are the last segments of the
    names of layers whose own weight is (inputs, outputs), which their quantisers pack as (outputs, inputs).
    """
    made: dict[str, Derived] = {}
    first = {weight.parts[0][1].name: weight for weight in weights}
    parts = {name for weight in weights for name in weight.stored}
    for name, ref in checkpoint.tensors.items():
        if name in first:
            weight = first[name]
            if weight.name in checkpoint.tensors and weight.name not in parts:
                raise CorruptError(
                    f"{weight.name} is stored plain, and packed too",
                    where=f"{ref.shard}: {name}",
                    cure="use the files of one of the two",
                )
            if weight.of_layer and weight.name.split(".")[-2:][0] in turned:
                weight = replace(weight, turned=True)
            made[weight.name] = Dequantised.of(weight, code)
        elif name not in parts:
            made[name] = ref
    config = checkpoint.config
    if config is not None:
        config = _without_settings(config)
    labels = dict.fromkeys(weight.scheme.label for weight in weights) or ["GGUF"]
    if renamed and "gguf" in checkpoint.metadata:
        from shardload.checkpoint.gguf_model import with_model_names

        made = with_model_names(checkpoint.metadata, made, code)
    return replace(checkpoint, tensors=MappingProxyType(made), packing=" and ".join(labels), config=config)


def _settings(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    for name in CONFIG_FIELDS[:2]:
        for each in (config, config.get("text_config")):
            found = each.get(name) if isinstance(each, dict) else None
            if isinstance(found, dict) and found:
                return found
    names = checkpoint.source.names() if checkpoint.named is None else ()
    return next((read_object(checkpoint.source, name) for name in QUANTISER_FILES if name in names), {})


def _without_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_settings(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in CONFIG_FIELDS
    }
