"""Recognises errors of torch by their text; this is the only file that reads torch's messages."""

from __future__ import annotations

import torch

# Code read the values of a meta tensor, or assigned data to one.
_META = (
    "meta tensor",
    "Meta tensors",
    "meta device",
    "incompatible tensor type",
    "on meta",
    "meta, ",
    "device meta",
)
_SIZE = ("can't allocate memory", "Storage size calculation overflowed", "numel: integer multiplication")
# The first message is of a torch without CUDA, the others are of one with CUDA.
_CUDA = ("Torch not compiled with CUDA enabled", "Found no NVIDIA driver", "No CUDA GPUs are available")


def met_meta(error: BaseException) -> bool:
    """Whether code failed because a tensor on meta has no values."""
    return isinstance(error, (RuntimeError, NotImplementedError)) and _says(error, _META)


def is_about_memory(error: BaseException) -> bool:
    """Whether code failed because a tensor needs more memory than the machine has."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _says(error, _SIZE))


def asks_for_cuda(error: BaseException) -> bool:
    """Whether code failed because it asked for a CUDA device and this machine has none."""
    return _says(error, _CUDA) and not torch.cuda.is_available()


def _says(error: BaseException, signs: tuple[str, ...]) -> bool:
    text = str(error)
    return any(sign in text for sign in signs)
