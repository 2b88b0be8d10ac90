"""`transformers.utils.doc`: decorators that add to docstrings. None changes what a function does."""

from __future__ import annotations

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
    """Return a decorator that leaves the docstring as it is: the samples need the library's templates."""
    return _unchanged


def replace_return_docstrings(*_docstr: Any, **_parts: Any) -> Callable[[Documented], Documented]:
    """Return a decorator that leaves the docstring as it is."""
    return _unchanged


def _unchanged(target: Documented) -> Documented:
    return target
