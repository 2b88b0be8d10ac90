"""The files of a repo that a Python file imports, found in its syntax tree wherever the import is."""

from __future__ import annotations

import ast
import sys
from functools import lru_cache
from posixpath import dirname
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# A repo's file of one of these names never stands in for the real module: `import logging` means Python's.
_NEVER_THE_REPOS = frozenset({*sys.stdlib_module_names, "torch", "transformers", "shardload"})


@lru_cache(maxsize=64)  # a load asks four times: for the gate, config and class
def imported_files(content: bytes, name: str, names: frozenset[str]) -> frozenset[str]:
    """Return the files among `names` that the file `name` imports: relative, un-dotted and by `import_module`.

    Raises SyntaxError, or ValueError for bytes that are not Python source.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(content, filename=name)):
        if isinstance(node, ast.ImportFrom):
            found |= _from(node, name, names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                found |= _absolute(alias.name, (), name, names)
        elif isinstance(node, ast.Call):
            found |= _import_module(node, name, names)
    return frozenset(found)


def home_of(top: str, importer: str, names: frozenset[str]) -> str | None:
    """Return the folder of the repo where an un-dotted `import top` finds a file; None where it finds none.

    The importing file's own folder is searched first, then the root, as for a script that runs there.
    """
    if top in _NEVER_THE_REPOS:
        return None
    for folder in dict.fromkeys((dirname(importer), "")):
        if _exists(_join(folder, top), names):
            return folder
    return None


def _from(node: ast.ImportFrom, name: str, names: frozenset[str]) -> set[str]:
    imported = tuple(alias.name for alias in node.names)
    if node.level == 0:
        return _absolute(node.module or "", imported, name, names)
    folder = dirname(name)
    for _ in range(node.level - 1):
        if not folder:
            return set()  # above the repo's root: running it fails, unless it is guarded
        folder = dirname(folder)
    return set(_files(folder, node.module or "", imported, names))


def _absolute(module: str, imported: tuple[str, ...], name: str, names: frozenset[str]) -> set[str]:
    folder = home_of(module.split(".", maxsplit=1)[0], name, names)
    return set() if folder is None else set(_files(folder, module, imported, names))


def _import_module(node: ast.Call, name: str, names: frozenset[str]) -> set[str]:
    """Return the module that `importlib.import_module("literal", …)` imports; computed names are unknown."""
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
    first = node.args[0] if node.args else None
    if called != "import_module" or not isinstance(first, ast.Constant) or not isinstance(first.value, str):
        return set()
    text = first.value
    module = text.lstrip(".")
    level = len(text) - len(module)
    return _from(ast.ImportFrom(module=module, names=[], level=level), name, names)


def _files(folder: str, module: str, imported: tuple[str, ...], names: frozenset[str]) -> Iterator[str]:
    """Yield the files that importing `module` (below `folder`) runs, packages on the way included."""
    path = folder
    if not module and f"{_join(path, '__init__')}.py" in names and not _all_are_files(path, imported, names):
        # `from . import x` where x is no file: the package itself defines it.
        yield f"{_join(path, '__init__')}.py"
    for part in module.split(".") if module else ():
        path = _join(path, part)
        yield from _file(path, names)
    for item in imported:
        yield from _file(_join(path, item), names)


def _file(path: str, names: frozenset[str]) -> list[str]:
    """Return a list of the file that importing a path runs; it is empty for a folder without `__init__.py`."""
    # A package hides a module of the same name, as in Python.
    return [file for file in (f"{path}/__init__.py", f"{path}.py") if file in names][:1]


def _all_are_files(folder: str, imported: tuple[str, ...], names: frozenset[str]) -> bool:
    return all(_exists(_join(folder, item), names) for item in imported)


def _exists(path: str, names: frozenset[str]) -> bool:
    return f"{path}.py" in names or any(
        name.startswith(f"{path}/") and name.endswith(".py") for name in names
    )


def _join(folder: str, part: str) -> str:
    return f"{folder}/{part}" if folder else part
