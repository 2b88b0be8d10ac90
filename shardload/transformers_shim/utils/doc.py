"""`transformers.utils.doc`: decorators for docstrings. None changes what a function does."""

from __future__ import annotations

import functools
import types
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Documented = TypeVar("Documented")


def add_start_docstrings(*docstr: str) -> Callable[[Documented], Documented]:
    """Return a decorator that puts these texts before the docstring."""

    def decorate(target: Documented) -> Documented:
        target.__doc__ = "".join(docstr) + (target.__doc__ or "")
        return target

    return decorate


def add_end_docstrings(*docstr: str) -> Callable[[Documented], Documented]:
    """Return a decorator that puts these texts after the docstring."""

    def decorate(target: Documented) -> Documented:
        target.__doc__ = (target.__doc__ or "") + "".join(docstr)
        return target

    return decorate


add_start_docstrings_to_model_forward = add_start_docstrings


def add_code_sample_docstrings(*_docstr: Any, **_parts: Any) -> Callable[[Documented], Documented]:
    """Return a decorator that changes nothing: the samples need the library's templates."""
    return _unchanged


def replace_return_docstrings(*_docstr: Any, **_parts: Any) -> Callable[[Documented], Documented]:
    """Return a decorator that changes nothing."""
    return _unchanged


def _unchanged(target: Documented) -> Documented:
    return target


def auto_docstring(target: Any = None, **_parts: Any) -> Any:
    """Change nothing; usable as a decorator by itself, or called with parts of a text."""
    return _unchanged if target is None else target


auto_class_docstring = auto_docstring


def copy_func(function: Any) -> Any:
    """Return a copy of a function, with its own attributes."""
    copied = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return functools.update_wrapper(copied, function)
