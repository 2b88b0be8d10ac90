"""The packages that quantise, which are extras: imported when a load needs one."""

from __future__ import annotations

import builtins
import importlib
import sys
from importlib.machinery import PathFinder, SourceFileLoader
from typing import TYPE_CHECKING, Any

from shardload.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_FETCHES = "bitsandbytes.backends.cpu.ops"
_FETCHER = "kernels"


def bitsandbytes() -> Any:
    """Return the package bitsandbytes. Raises UnsupportedError where it is not installed.

    On some processors its import asks the Hub for a kernel, through the package `kernels`. Imported from here it does
    as it does where that package is not installed.
    """
    there = sys.modules.get("bitsandbytes")
    if there is not None:
        return there
    finder = _Offline()
    sys.meta_path.insert(0, finder)
    try:
        return _imported("bitsandbytes")
    finally:
        sys.meta_path.remove(finder)


def torchao() -> Any:
    """Return the package torchao. Raises UnsupportedError where it is not installed."""
    for name in ("torchao.core.config", "torchao.quantization"):
        _imported(name)
    return _imported("torchao")


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    if package in sys.modules:
        return sys.modules[package] is not None  # None forbids an import
    return PathFinder.find_spec(package) is not None


def _imported(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        extra = package.partition(".")[0]
        raise UnsupportedError(
            f"weights are quantised by {extra}, which can't be imported: {error}",
            cure=f"pip install {extra}",
            code="E-QUANT",
        ) from error


class _Offline:
    """Finds the one file that fetches something, and runs it without the package that it fetches with."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _FETCHES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        # Only this file's own import statement is changed: the package stays what it is for everybody else.
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _without_fetcher}
        super().exec_module(module)


def _without_fetcher(name: str, *arguments: Any, **keywords: Any) -> Any:
    if name == _FETCHER:
        raise ModuleNotFoundError("nothing is fetched while weights are loaded", name=name)
    return builtins.__import__(name, *arguments, **keywords)
