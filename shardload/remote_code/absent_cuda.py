"""CUDA, for constructors that ask for it on a machine that has none: what they make is on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable

# What torch says, built without CUDA and built with it.
_SIGNS = ("Torch not compiled with CUDA enabled", "Found no NVIDIA driver", "No CUDA GPUs are available")


def asks_for_cuda(error: BaseException) -> bool:
    """Whether code failed because it asked for a CUDA device and this machine has none."""
    return any(sign in str(error) for sign in _SIGNS) and not torch.cuda.is_available()


class CpuForCuda(TorchFunctionMode):
    """Makes tensors on the CPU where CUDA is asked for: `device="cuda"` in any form, `.to("cuda")`, `.cuda()`.

    For constructors: a table of positions that they make on CUDA is the same on the CPU, and goes where the model goes.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.to:
            args = tuple(_on_cpu(value) for value in args)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _on_cpu(kwargs["device"])}
        return func(*args, **kwargs)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, str) and value.split(":")[0] == "cuda":
        return "cpu"
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value
