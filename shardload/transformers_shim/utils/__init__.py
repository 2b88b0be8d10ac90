"""`transformers.utils`, in part: logging, model outputs, docstring decorators, package probes."""

from __future__ import annotations

from shardload.transformers_shim.utils import logging
from shardload.transformers_shim.utils.doc import *  # noqa: F403 - the package has all names of both modules
from shardload.transformers_shim.utils.generic import (
    ContextManagers,
    ExplicitEnum,
    LossKwargs,
    ModelOutput,
    PaddingStrategy,
    TensorType,
    TransformersKwargs,
    can_return_tuple,
    filter_out_non_signature_kwargs,
    torch_float,
    torch_int,
)
from shardload.transformers_shim.utils.hub import (
    PushToHubMixin,
    cached_file,
    is_remote_url,
    try_to_load_from_cache,
)
from shardload.transformers_shim.utils.import_utils import *  # noqa: F403

__all__ = [
    "ContextManagers",
    "ExplicitEnum",
    "LossKwargs",
    "ModelOutput",
    "PaddingStrategy",
    "PushToHubMixin",
    "TensorType",
    "TransformersKwargs",
    "cached_file",
    "can_return_tuple",
    "filter_out_non_signature_kwargs",
    "is_remote_url",
    "logging",
    "torch_float",
    "torch_int",
    "try_to_load_from_cache",
]

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
SAFE_WEIGHTS_NAME = "model.safetensors"
SAFE_WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
WEIGHTS_NAME = "pytorch_model.bin"
WEIGHTS_INDEX_NAME = "pytorch_model.bin.index.json"
DUMMY_INPUTS = [[7, 6, 0, 0, 1], [1, 2, 3, 0, 0], [0, 0, 0, 4, 5]]
DUMMY_MASK = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1]]
