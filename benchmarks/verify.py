"""Checks that a loaded model holds the stored values, so that no contestant wins by loading nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def expected_path(folder: str | Path) -> Path:
    """Return the path of the file beside a checkpoint that holds the `sample` of each stored parameter."""
    folder = Path(folder)
    return folder.with_name(f"{folder.name}.expected.json")


def sample(tensor: torch.Tensor) -> float:
    """Return the sum of some elements: one of every page of a 16-bit tensor, and at least 16 of a small tensor.

    A cast to a wider dtype does not change the sum.
    """
    flat = tensor.detach().reshape(-1)
    return float(flat[:: min(2048, max(1, flat.numel() // 16))].double().sum())


def faults(model: nn.Module, folder: str | Path, dtype: str) -> list[str]:
    """Return the names of tensors that are missing, on meta, or that have another dtype or other values than stored.

    After a zero-copy load this check is also the first touch of every page.
    """
    expected: dict[str, float] = json.loads(expected_path(folder).read_text())
    parameters = dict(model.named_parameters())
    wrong = [name for name in expected if name not in parameters]
    wrong += [name for name, buffer in model.named_buffers() if buffer.is_meta]
    for name, tensor in parameters.items():
        if tensor.is_meta or str(tensor.dtype) != f"torch.{dtype}" or sample(tensor) != expected.get(name):
            wrong.append(name)
    return wrong
