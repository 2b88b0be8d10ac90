"""Calls of torch in another default dtype, for one thread; torch's own is one for all threads."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from shardload.model.asked_dtype import asks_for_default
from shardload.model.default_dtype_kept import SETTERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import CodeType, FrameType

_MAKE_FLOATS = frozenset(
    {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.eye, torch.linspace, torch.logspace}
    | {torch.hann_window, torch.hamming_window, torch.blackman_window}
    | {torch.bartlett_window, torch.kaiser_window}
    | {torch.empty_strided, torch.empty_permuted, torch.normal}
)
# Of these the arguments decide: of 3 they make integers, of 3.0 floats of the default dtype.
_MAKE_WHAT_THEY_GET = frozenset(
    {torch.tensor, torch.full, torch.arange, torch.scalar_tensor, torch.as_tensor, torch.asarray, torch.range}
)
_SETTERS = SETTERS | {"local_torch_dtype"}
_TRANSFORMERS = "transformers.modeling_utils"
_CHOOSE = frozenset({torch.where, torch.Tensor.where})
# Their names say the dtype.
_NAME_A_DTYPE = frozenset(
    {torch.Tensor.float, torch.Tensor.double, torch.Tensor.half, torch.Tensor.bfloat16, torch.Tensor.type}
    | {torch.Tensor.dequantize, torch.dequantize}
)


def default_of(
    dtype: torch.dtype, outside: torch.dtype, frame: FrameType | None, boundary: CodeType
) -> torch.dtype:
    """Return the default dtype for a call from `frame`, in a constructor that works in `dtype`.

    That is the process's where the constructor's code has set it; another thread may set it too. In the initialiser of
    transformers it is `outside`, the one around the constructor: its loader runs the initialiser last and computes
    tables again.
    """
    process = torch.get_default_dtype()
    while frame is not None and frame.f_code is not boundary:
        code = frame.f_code
        sets_it = not _SETTERS.isdisjoint(code.co_names)
        # Where it is as outside, the code has set nothing, or put it back, or names that very dtype.
        if sets_it and (process is not outside or str(process).removeprefix("torch.") in code.co_names):
            return process
        if code.co_name == "initialize_weights" and frame.f_globals.get("__name__") == _TRANSFORMERS:
            return outside
        frame = frame.f_back
    return dtype


def call_in(
    dtype: torch.dtype,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    given: Sequence[torch.Tensor],
    *,
    boundary: CodeType,
) -> Any:
    """Return `func(*args, **kwargs)` as if torch's default dtype were another one, for this call alone.

    `given` are the tensors among the arguments. A result in the process's default dtype that no argument brought along
    is made again in `dtype`. A dtype that code names itself (`torch.float32`, `.float()`) is kept; one that it asked
    for by `torch.get_default_dtype()`, in a frame above that of `boundary`, is not.
    """
    process = torch.get_default_dtype()
    if any(value is process for value in (*args, *kwargs.values())):
        if asks_for_default(sys._getframe(1), boundary, process):
            args = tuple(dtype if value is process else value for value in args)
            kwargs = {name: dtype if value is process else value for name, value in kwargs.items()}
        return func(*args, **kwargs)
    named = kwargs.get("dtype") is not None or func in _NAME_A_DTYPE
    if func in _MAKE_FLOATS and not named and "out" not in kwargs and not (given and func is torch.normal):
        return func(*args, **{**kwargs, "dtype": dtype})
    made = func(*args, **kwargs)
    if type(made) is not torch.Tensor or made.dtype is not process or named:
        return made
    if func in _MAKE_WHAT_THEY_GET:
        has_float = _has_float((*args, *kwargs.values()), dtype)
        with suppress(RuntimeError):  # a number that the dtype can't hold
            made = made if has_float else func(*args, **{**kwargs, "dtype": dtype})
        return made
    if any(one.is_floating_point() or one.is_complex() for one in given):
        return made
    with suppress(RuntimeError):  # some functions have no kernel for the dtype
        made = _promoted(dtype, func, args, kwargs)
    return made.to(dtype)


def _promoted(dtype: torch.dtype, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Call with floats of `dtype` in place of integers, which is how torch promotes them where a result is a float."""
    chooses = func in _CHOOSE  # by booleans, among numbers

    def promoted(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value if chooses and value.dtype is torch.bool else value.to(dtype)
        return torch.scalar_tensor(value, dtype=dtype) if chooses and isinstance(value, float) else value

    return func(*map(promoted, args), **{name: promoted(value) for name, value in kwargs.items()})


def _has_float(values: Any, but: torch.dtype) -> bool:
    """Whether a value, or one in lists of values, has a float dtype of its own (a tensor, or one of NumPy's)."""
    return any(
        _has_float(value, but)
        if isinstance(value, (list, tuple))
        else "float" in str(getattr(value, "dtype", "")) and getattr(value, "dtype", but) is not but
        for value in values
    )
