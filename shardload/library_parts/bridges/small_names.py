"""Functions and decorators of the newer spelling that no file of the library gives alone."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


def slice_logits_to_keep(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """Return the states (batch, positions, size) whose logits are wanted.

    That is the last so many (0 is all), or those at the positions of a tensor, for each row where it is 2-d. A 2-d
    mask gives the states that it marks, (marked, size).
    """
    if isinstance(logits_to_keep, int):
        return hidden_states[:, slice(-logits_to_keep, None), :]
    if logits_to_keep.dim() < 2:
        return hidden_states[:, logits_to_keep, :]
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    return torch.take_along_dim(hidden_states, logits_to_keep[..., None], dim=1)


class TransformGetItemToIndex:
    """torch's context in which masks may index tensors under vmap; it brings torch._dynamo, which takes seconds."""

    def __enter__(self) -> None:
        from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex as OfTorch

        made: Any = OfTorch()
        self._of_torch = made
        self._of_torch.__enter__()

    def __exit__(self, *raised: object) -> None:
        self._of_torch.__exit__(*raised)


def get_torch_context_manager_or_global_device() -> torch.device | None:
    """Return the device that new tensors get, or None where nobody chose one."""
    device, default = torch.tensor([]).device, torch.get_default_device()
    return None if device == default == torch.device("cpu") else device


def torch_compilable_check(cond: Any, msg: Any, error_type: type[Exception] = ValueError) -> None:
    """Raise the error unless the condition holds; traced code assumes that it does."""
    if torch.compiler.is_compiling():
        return
    if not bool(cond.all() if isinstance(cond, torch.Tensor) else cond):
        raise error_type(msg() if callable(msg) else msg)


def is_torchdynamo_exporting() -> bool:
    """Return whether torch.export is tracing."""
    return torch.compiler.is_exporting()


def is_tracing(tensor: Any = None) -> bool:  # noqa: ARG001 - the name is the interface
    """Return whether torch traces the code."""
    return bool(torch.jit.is_tracing()) or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]


def is_torch_less_or_equal(library_version: str, accept_dev: bool = False) -> bool:  # noqa: ARG001
    """Return whether torch is that version or older."""
    wanted, there = (
        [int(part) for part in text.split("+")[0].split(".") if part.isdigit()]
        for text in (library_version, torch.__version__)
    )
    return there <= wanted + [0] * (len(there) - len(wanted))


def is_grouped_mm_available() -> bool:
    """Return whether torch multiplies groups of matrices in one call."""
    return hasattr(torch.nn.functional, "grouped_mm") or hasattr(torch, "_grouped_mm")


def unchanged(*arguments: Any, **_options: Any) -> Any:
    """Return what is decorated as it is, with and without parentheses."""
    if len(arguments) == 1 and (isinstance(arguments[0], type) or hasattr(arguments[0], "__code__")):
        return arguments[0]
    return lambda decorated: decorated


def use_kernel_func_from_hub_with_fallback(
    func_name: str, _package: str = "", *_names: Any, **_options: Any
) -> Callable[[Any], Any]:
    """Return a decorator for a function that stands for a fused kernel: arguments of the kernel alone are left out.

    Sequences packed into one row, which only the kernel keeps apart, are a ValueError.
    """

    def decorate(function: Any) -> Any:
        named = tuple(inspect.signature(function).parameters)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for name in ("cu_seqlens", "seq_idx"):
                if kwargs.get(name) is not None:
                    raise ValueError(
                        f"{func_name} can't keep packed sequences apart ({name}=) without its kernel"
                    )
            return function(*args, **{name: value for name, value in kwargs.items() if name in named})

        return wrapper

    return decorate
