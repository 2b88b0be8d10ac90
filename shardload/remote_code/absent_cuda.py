"""The CPU in place of CUDA, for constructors that ask for CUDA on a machine without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable

# torch's messages: of a build without CUDA, and of a build with CUDA that finds no GPU.
_SIGNS = ("Torch not compiled with CUDA enabled", "Found no NVIDIA driver", "No CUDA GPUs are available")


def asks_for_cuda(error: BaseException) -> bool:
    """Return whether code failed because it asked for a CUDA device that this machine does not have."""
    return any(sign in str(error) for sign in _SIGNS) and not torch.cuda.is_available()


class CpuForCuda(TorchFunctionMode):
    """Makes tensors on the CPU where CUDA is asked for: `device="cuda"` in any form, `.to("cuda")`, `.cuda()`.

    For constructors: a table of positions has the same values on the CPU, and later moves with the model.
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
