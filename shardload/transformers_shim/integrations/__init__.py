"""`transformers.integrations`, in part: the stand-in has no active integration."""

from __future__ import annotations

from shardload.transformers_shim.integrations.deepspeed import (
    deepspeed_config,
    is_deepspeed_zero3_enabled,
    is_fsdp_managed_module,
)
from shardload.transformers_shim.integrations.hub_kernels import use_kernel_forward_from_hub

__all__ = [
    "deepspeed_config",
    "is_deepspeed_zero3_enabled",
    "is_fsdp_managed_module",
    "use_kernel_forward_from_hub",
]
