"""`transformers.integrations.deepspeed`: the stand-in has no partitioned weights."""

from __future__ import annotations

from typing import Any


def is_deepspeed_zero3_enabled() -> bool:
    """Return False: shardload loads no DeepSpeed ZeRO-3 partitions."""
    return False


def is_fsdp_managed_module(module: object) -> bool:  # noqa: ARG001 - the name is the interface
    """Return False: the stand-in has no FSDP wrapper."""
    return False


def deepspeed_config() -> Any:
    """Return None: nothing is configured."""
    return None
