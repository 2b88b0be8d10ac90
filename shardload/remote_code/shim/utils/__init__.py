"""`transformers.utils`, in part: logging, model outputs, docstring decorators, probes for packages."""

from __future__ import annotations

from shardload.remote_code.shim.utils import logging
from shardload.remote_code.shim.utils.doc import *  # noqa: F403 - the package offers all of both modules
from shardload.remote_code.shim.utils.generic import ExplicitEnum, ModelOutput, PaddingStrategy, TensorType
from shardload.remote_code.shim.utils.import_utils import *  # noqa: F403

__all__ = ["ExplicitEnum", "ModelOutput", "PaddingStrategy", "TensorType", "logging"]

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
SAFE_WEIGHTS_NAME = "model.safetensors"
SAFE_WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
WEIGHTS_NAME = "pytorch_model.bin"
WEIGHTS_INDEX_NAME = "pytorch_model.bin.index.json"
