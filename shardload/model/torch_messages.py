"""What torch's own errors say in words alone: the only place that reads them."""

from __future__ import annotations

import torch

# Code looked at values that a tensor on meta does not have, or gave it others.
_META = ("meta tensor", "meta device", "incompatible tensor type", "on meta", "meta, ", "device meta")
_SIZE = ("can't allocate memory", "Storage size calculation overflowed", "numel: integer multiplication")
# Built without CUDA, and built with it.
_CUDA = ("Torch not compiled with CUDA enabled", "Found no NVIDIA driver", "No CUDA GPUs are available")


def met_meta(error: BaseException) -> bool:
    """Whether code failed on a tensor without values."""
    return isinstance(error, (RuntimeError, NotImplementedError)) and _says(error, _META)


def is_about_memory(error: BaseException) -> bool:
    """Whether there is no memory for a tensor of that size."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _says(error, _SIZE))


def asks_for_cuda(error: BaseException) -> bool:
    """Whether code failed because it asked for a CUDA device and this machine has none."""
    return _says(error, _CUDA) and not torch.cuda.is_available()


def _says(error: BaseException, signs: tuple[str, ...]) -> bool:
    text = str(error)
    return any(sign in text for sign in signs)
