"""`transformers.generation`, in part: settings, bases and hooks; `generate` arrives later."""

from __future__ import annotations

from shardload.remote_code.shim.generation.configuration_utils import GenerationConfig
from shardload.remote_code.shim.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    LogitsWarper,
)
from shardload.remote_code.shim.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from shardload.remote_code.shim.generation.streamers import BaseStreamer, TextIteratorStreamer, TextStreamer
from shardload.remote_code.shim.generation.utils import GenerateOutput, GenerationMixin

__all__ = [
    "BaseStreamer",
    "GenerateOutput",
    "GenerationConfig",
    "GenerationMixin",
    "LogitsProcessor",
    "LogitsProcessorList",
    "LogitsWarper",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "TextIteratorStreamer",
    "TextStreamer",
]
