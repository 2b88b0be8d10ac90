"""The layer that computes itself again in the backward pass."""

from __future__ import annotations

from typing import Any

from shardload.library_parts.release import installed
from shardload.transformers_shim.modeling_layers import GradientCheckpointingLayer


def layer() -> Any:
    """Return the stand-in's class: the library's own asks who wrapped a `forward` last. None before it had one."""
    release = installed()
    there = release is not None and release.file("modeling_layers") is not None
    return GradientCheckpointingLayer if there else None
