"""`transformers.processing_utils`, in part: types of keyword arguments."""

from __future__ import annotations

from typing_extensions import Unpack

__all__ = ["Unpack"]
