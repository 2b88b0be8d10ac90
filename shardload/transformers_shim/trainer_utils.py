"""`transformers.trainer_utils`, in part: `set_seed`."""

from __future__ import annotations

import importlib.util
import random

import torch


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed the generators of Python, NumPy and torch on every device; deterministic kernels on request."""
    random.seed(seed)
    if importlib.util.find_spec("numpy"):
        import numpy as np

        np.random.seed(seed)  # noqa: NPY002 - old code draws from the global generator
    torch.manual_seed(seed)
    if deterministic:
        torch.use_deterministic_algorithms(mode=True)
