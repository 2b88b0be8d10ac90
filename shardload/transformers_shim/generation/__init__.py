"""`transformers.generation`: settings, processors, criteria, streamers, and `generate` itself."""

from __future__ import annotations

from shardload.transformers_shim.generation.configuration_utils import GenerationConfig, GenerationMode
from shardload.transformers_shim.generation.logits_process import *  # noqa: F403 - the package offers all of it
from shardload.transformers_shim.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxNewTokensCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    validate_stopping_criteria,
)
from shardload.transformers_shim.generation.streamers import BaseStreamer, TextIteratorStreamer, TextStreamer
from shardload.transformers_shim.generation.utils import *  # noqa: F403

__all__ = [
    "BaseStreamer",
    "EosTokenCriteria",
    "GenerationConfig",
    "GenerationMode",
    "MaxLengthCriteria",
    "MaxNewTokensCriteria",
    "MaxTimeCriteria",
    "StopStringCriteria",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "TextIteratorStreamer",
    "TextStreamer",
    "validate_stopping_criteria",
]
