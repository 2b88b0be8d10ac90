"""The class of the stand-in's modules: it answers for the names that a module of transformers would have."""

from __future__ import annotations

import ast
import dis
import functools
import importlib
import sys
from types import FrameType, ModuleType
from typing import Any

from shardload.transformers_shim._index import PLACEHOLDER_MODULES, SHIM, has_module, homes, names_by_module
from shardload.transformers_shim._missing import REPOS, MissingAttributeError, lacking
from shardload.transformers_shim._placeholders import placeholder, probe

_CATCHES = frozenset({"ImportError", "ModuleNotFoundError", "AttributeError", "Exception", "BaseException"})
_PLAIN = frozenset({"LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"})


class ShimModule(ModuleType):
    """A module of the stand-in. Its submodules are of this class too, from the moment they are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system sets a new submodule on its package.
        _adopt(self, name, value)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        # Python itself probes modules for dunder names (`__path__`, `__wrapped__`): those are no requests.
        if name.startswith("__"):
            raise AttributeError(name)
        frame = sys._getframe(1)
        if not str(frame.f_globals.get("__name__", "")).startswith(REPOS):
            found = known(self, name)
            if found is None:
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            return found
        found = answer(self, name, frame, may_lack=_may_lack(frame))
        if found is None:
            raise lacking(MissingAttributeError, f"{self._own_name()}.{name}")
        return found

    def _own_name(self) -> str:
        return self.__name__.replace(SHIM, "transformers", 1)


def _adopt(parent: ModuleType, name: str, value: Any) -> None:
    """Give a submodule, and those that it imported itself, the class that answers for lacking names."""
    if isinstance(value, ModuleType) and value.__name__ == f"{parent.__name__}.{name}":
        value.__class__ = ShimModule
        for inner, child in list(vars(value).items()):
            _adopt(value, inner, child)


def known(module: ModuleType, name: str) -> Any:
    """Return a submodule or a name of the stand-in, wherever it is defined; None when there is none."""
    inside = _relative(module)
    own = f"{inside}.{name}" if inside else name
    if own in names_by_module():
        return importlib.import_module(f"{SHIM}.{own}")
    if name in vars(module):
        return vars(module)[name]
    home = homes().get(name)
    return None if home in (None, inside) else getattr(importlib.import_module(f"{SHIM}.{home}"), name)


def answer(module: ModuleType, name: str, frame: FrameType, *, may_lack: bool = False) -> Any:
    """Return what the line of repo code in `frame` gets for `module.name`; None when it is to fail.

    A name that the stand-in has; the answer of a probe; else a placeholder, but inside `try`, and where the question
    itself `may_lack` an answer (`hasattr`), an unknown name is what it is: not there.
    """
    found = known(module, name)
    if found is None:
        found = probe(name)
    if found is None and not may_lack and not _in_try(frame):
        inside = _relative(module)
        own = f"{inside}.{name}" if inside else name
        found = placeholder_module(own) if _is_empty(own) else placeholder(inside, name)
    return found


def import_for(target: str, frame: FrameType) -> ModuleType | None:
    """Import a module of the stand-in for the line of repo code in `frame`; None when it is to fail."""
    inside = target[len(SHIM) + 1 :]
    if not inside or inside in names_by_module():
        return importlib.import_module(target)
    if has_module(inside) and not _in_try(frame):
        return placeholder_module(inside)
    return None


@functools.cache
def placeholder_module(inside: str) -> ModuleType:
    """Return the module that stands for one whose content the stand-in lacks."""
    made = ShimModule(f"{SHIM}.{inside}", f"Stands for transformers.{inside}: its names are placeholders.")
    made.__path__ = []
    return made


def is_without_content(module: ModuleType) -> bool:
    """Whether the module is one of placeholders only: nobody knows what `import *` takes from it."""
    return _relative(module) not in names_by_module()


def _is_empty(own: str) -> bool:
    parts = own.split(".")
    in_models = parts[0] == "models" and (
        len(parts) == 2 or (len(parts) == 3 and parts[2].startswith(("modeling_", "configuration_")))
    )
    return in_models or own in PLACEHOLDER_MODULES


def _relative(module: ModuleType) -> str:
    return module.__name__[len(SHIM) + 1 :]


def _may_lack(frame: FrameType) -> bool:
    """Whether a lookup is made by a function (`hasattr`, `getattr`) rather than by a plain `module.name`."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]] not in _PLAIN


def _in_try(frame: FrameType) -> bool:
    loader = frame.f_globals.get("__loader__")
    source = loader.get_source(frame.f_globals["__name__"]) if loader else ""
    return any(first <= frame.f_lineno <= last for first, last in guarded_lines(source))


@functools.lru_cache(maxsize=64)
def guarded_lines(source: str) -> tuple[tuple[int, int], ...]:
    """Return the (first, last) lines of every `try` body, and `with suppress` body, that survives a failed import."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Try) and any(_catches(handler.type) for handler in node.handlers):
            found.append((node.body[0].lineno, node.body[-1].end_lineno or node.body[-1].lineno))
        elif isinstance(node, ast.With) and any(_suppresses(item.context_expr) for item in node.items):
            found.append((node.lineno, node.end_lineno or node.lineno))
    return tuple(found)


def _catches(kinds: ast.expr | None) -> bool:
    """Whether an except clause catches a failed import; None is the bare one, which catches all."""
    return kinds is None or any(_name(node) in _CATCHES for node in ast.walk(kinds))


def _suppresses(call: ast.expr) -> bool:
    return (
        isinstance(call, ast.Call)
        and _name(call.func) == "suppress"
        and any(_catches(kind) for kind in call.args)
    )


def _name(node: ast.AST) -> str:
    return str(getattr(node, "attr", None) or getattr(node, "id", ""))
