"""Answers CUDA calls on the CPU, for code that needs CUDA on a machine without it.

It covers devices, `.cuda()`, streams and the current device, and the probe for flash-attn when a stand-in of flash-attn
can be imported. The file is used with shardload, and without it in an environment of another transformers release.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable

NUMBER = 0  # the number of the pretended current device


class _OnCpu(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.cuda, torch.Tensor.cpu):
            return args[0]
        if func is torch.Tensor.to:
            args = tuple(on_cpu(value) for value in args)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": on_cpu(kwargs["device"])}
        return func(*args, **kwargs)


class _Event:
    """An event of a stream: nothing waits, and no time passes."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        """Note nothing."""

    synchronize = wait = record

    def elapsed_time(self, _end: Any) -> float:
        """Return 0 milliseconds."""
        return 0.0


def on_cpu(value: Any) -> Any:
    """Return "cpu" for a CUDA device in any form, and any other value unchanged."""
    is_name = isinstance(value, str) and value.startswith("cuda")
    is_device = isinstance(value, torch.device) and value.type == "cuda"
    return "cpu" if is_name or is_device or value is NUMBER else value


def begin() -> None:
    """Answer the CUDA calls of this process from now on. Call this before the code is imported."""
    _OnCpu().__enter__()
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]
    torch.cuda.current_device = lambda: NUMBER
    torch.cuda.Event = _Event  # type: ignore[misc,assignment]
    for name in ("stream", "device"):
        setattr(torch.cuda, name, lambda *_: contextlib.nullcontext())
    for name in ("default_stream", "current_stream", "synchronize"):
        setattr(torch.cuda, name, lambda *_: None)
    if importlib.util.find_spec("flash_attn") is None:
        return
    for module in ("shardload.transformers_shim", "transformers"):
        for place in (f"{module}.utils", f"{module}.utils.import_utils"):
            if place in sys.modules:
                sys.modules[place].is_flash_attn_2_available = lambda: True  # type: ignore[attr-defined]
