"""`transformers.deepspeed`: the old home of `is_deepspeed_zero3_enabled`."""

from __future__ import annotations

from shardload.transformers_shim.integrations.deepspeed import is_deepspeed_zero3_enabled

__all__ = ["is_deepspeed_zero3_enabled"]
