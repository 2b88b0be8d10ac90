"""`transformers.integrations`, in part: no integration is active in the stand-in."""

from __future__ import annotations


def is_deepspeed_zero3_enabled() -> bool:
    """Return False: shardload loads no DeepSpeed ZeRO-3 partitions."""
    return False


def is_fsdp_managed_module(module: object) -> bool:  # noqa: ARG001
    """Return False: the stand-in knows of no FSDP wrapper."""
    return False
