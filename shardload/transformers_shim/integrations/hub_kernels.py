"""`transformers.integrations.hub_kernels`: decorators that fetch compiled kernels, and here do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Decorated = TypeVar("Decorated")


def use_kernel_forward_from_hub(*_names: Any, **_options: Any) -> Callable[[Decorated], Decorated]:
    """Return a decorator that changes nothing: the class computes as it is written."""
    return _unchanged


def use_kernel_func_from_hub(*_names: Any, **_options: Any) -> Callable[[Decorated], Decorated]:
    """Return a decorator that changes nothing."""
    return _unchanged


def use_kernelized_func(*_functions: Any, **_options: Any) -> Callable[[Decorated], Decorated]:
    """Return a decorator that changes nothing."""
    return _unchanged


def _unchanged(target: Decorated) -> Decorated:
    return target
