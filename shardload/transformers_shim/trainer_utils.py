"""`transformers.trainer_utils`, in part: the seeds of random numbers."""

from __future__ import annotations

import importlib.util
import random

import torch


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Set the seed of Python's, NumPy's and torch's random numbers, on every device; slow exact kernels on request."""
    random.seed(seed)
    if importlib.util.find_spec("numpy"):
        import numpy as np

        np.random.seed(seed)  # noqa: NPY002 - the global generator is the one that old code draws from
    torch.manual_seed(seed)
    if deterministic:
        torch.use_deterministic_algorithms(mode=True)
