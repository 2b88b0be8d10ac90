"""The class of the stand-in's modules: it looks up the names that a module of transformers would have."""

from __future__ import annotations

import ast
import dis
import functools
import importlib
import sys
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, Literal

from shardload.transformers_shim._index import PLACEHOLDER_MODULES, SHIM, has_module, homes, names_by_module
from shardload.transformers_shim._missing import MissingAttributeError, MissingFromShimError, lacking
from shardload.transformers_shim._placeholders import (
    is_model_base,
    is_probe,
    is_torch_probe,
    placeholder,
    probe,
)
from shardload.transformers_shim._stars import star_module
from shardload.transformers_shim.host import host, is_repo_module

if TYPE_CHECKING:
    from collections.abc import Iterable

Answer = Literal["has it", "not available", "base", "placeholder", "not there", "lacks it"]
"""What the stand-in does with a name.

"not available": an unknown probe, which returns False. "base": the config class or the base class of one model, for
which the general ones stand. "placeholder": an unknown class, which raises when it is used. "not there": an unknown
name inside a `try`, which continues without it. "lacks it": importing the code fails.
"""

_CATCHES = frozenset({"ImportError", "ModuleNotFoundError", "AttributeError", "Exception", "BaseException"})
_PLAIN = frozenset({"LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"})


class ShimModule(ModuleType):
    """A module of the stand-in. Its submodules get this class too, when they are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system sets a new submodule on its package.
        _adopt(self, name, value)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        # Python itself looks for dunder names on modules (`__path__`, `__wrapped__`): code does not ask for them.
        if name.startswith("__"):
            raise AttributeError(name)
        return looked_up(self, name, sys._getframe(1))


def looked_up(module: ModuleType, name: str, frame: FrameType) -> Any:
    """Return what the code in `frame` gets for the attribute of a module of the stand-in; raise AttributeError."""
    if not is_repo_module(str(frame.f_globals.get("__name__", ""))):
        found = known(module, name)
        if found is None:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return found
    found = answer(module, name, frame, may_lack=_may_lack(frame))
    if found is None:
        raise lacking(MissingAttributeError, f"{module.__name__.replace(SHIM, 'transformers', 1)}.{name}")
    return found


def _adopt(parent: ModuleType, name: str, value: Any) -> None:
    """Make a submodule, and the submodules that it imported itself, a ShimModule."""
    if isinstance(value, ModuleType) and value.__name__ == f"{parent.__name__}.{name}":
        value.__class__ = ShimModule
        for inner, child in list(vars(value).items()):
            _adopt(value, inner, child)


def known(module: ModuleType, name: str) -> Any:
    """Return a submodule or a name of the stand-in, wherever it is defined; None without one."""
    inside = _relative(module)
    own = f"{inside}.{name}" if inside else name
    if own in names_by_module():
        return importlib.import_module(f"{SHIM}.{own}")
    if name in vars(module):
        return vars(module)[name]
    home = homes().get(name)
    return None if home in (None, inside) else getattr(importlib.import_module(f"{SHIM}.{home}"), name)


def answer(module: ModuleType, name: str, frame: FrameType, *, may_lack: bool = False) -> Any:
    """Return what the line of repo code in `frame` gets for `module.name`; None where it has to fail.

    That is a name that the stand-in has, the result of a probe, or else a placeholder. Inside `try`, and where the
    lookup `may_lack` a result (`hasattr`), an unknown name gets no placeholder: it is not there.
    """
    found = known(module, name)
    if found is None:
        found = probe(name)
    if found is None and not may_lack and not _in_try(frame):
        inside = _relative(module)
        own = f"{inside}.{name}" if inside else name
        found = placeholder_module(own) if _is_empty(own) else placeholder(inside, name)
    return found


def kind_of_answer(module: str, name: str, *, guarded: bool) -> Answer:
    """Return what code will get for a name of a module ("" is transformers), without running the code.

    `guarded`: whether the code asks inside a `try` that catches a failed import.
    """
    own = f"{module}.{name}" if module else name
    known = name in homes() or name in names_by_module().get(module, ()) or own in names_by_module()
    known = known or name.startswith("__") or (name == "*" and module in names_by_module())
    if known or is_torch_probe(name):
        return "has it"
    if is_probe(name):
        return "not available"
    if guarded:
        return "not there"
    if is_model_base(module, name):
        return "base"
    in_a_module = not module or has_module(module)
    if in_a_module and (has_module(own) or placeholder(module, name) is not None):
        return "placeholder"
    return "lacks it"


def import_for(name: str, frame: FrameType, fromlist: Iterable[str] | None = ()) -> ModuleType:
    """Import a module ("transformers.x") for the line of repo code in `frame`, which takes the names of `fromlist`.

    Raises MissingFromShimError where the stand-in has no answer for the module or one of the names.
    """
    host()
    inside = name.partition(".")[2]
    if not has_module(inside) or (inside not in names_by_module() and _in_try(frame)):
        raise lacking(MissingFromShimError, name)
    module = module_of(inside)
    for item in fromlist or ():
        if item == "*" and inside not in names_by_module():  # the names that it would bring are unknown
            raise lacking(MissingFromShimError, f"{name}.*")
        if item != "*" and answer(module, item, frame) is None:
            raise lacking(MissingFromShimError, f"{name}.{item}")
    if not inside and "*" in (fromlist or ()):  # the library's own brings whatever there is
        return star_module(name, frame, lambda each: answer(module, each, frame), vars(module))
    return module


def module_of(inside: str) -> ModuleType:
    """Return the stand-in's module of a dotted name ("" is transformers), or one of placeholders where it has none."""
    if inside in names_by_module():
        return importlib.import_module(f"{SHIM}.{inside}" if inside else SHIM)
    return placeholder_module(inside)


@functools.cache
def placeholder_module(inside: str) -> ModuleType:
    """Return a module of placeholders, for one whose content the stand-in lacks."""
    made = ShimModule(f"{SHIM}.{inside}", f"Stands for transformers.{inside}: its names are placeholders.")
    made.__path__ = []
    return made


def _is_empty(own: str) -> bool:
    parts = own.split(".")
    in_models = parts[0] == "models" and (
        len(parts) == 2 or (len(parts) == 3 and parts[2].startswith(("modeling_", "configuration_")))
    )
    return in_models or own in PLACEHOLDER_MODULES


def _relative(module: ModuleType) -> str:
    return module.__name__[len(SHIM) + 1 :]


def _may_lack(frame: FrameType) -> bool:
    """Return whether a function (`hasattr`, `getattr`) makes the lookup, rather than a plain `module.name`."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]] not in _PLAIN


def _in_try(frame: FrameType) -> bool:
    loader = frame.f_globals.get("__loader__")
    source = loader.get_source(frame.f_globals["__name__"]) if loader else ""
    return any(first <= frame.f_lineno <= last for first, last in guarded_lines(source))


@functools.lru_cache(maxsize=64)
def guarded_lines(source: str) -> tuple[tuple[int, int], ...]:
    """Return the (first, last) lines of every `try` or `with suppress` body whose failed import is caught."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Try) and any(_catches(handler.type) for handler in node.handlers):
            found.append((node.body[0].lineno, node.body[-1].end_lineno or node.body[-1].lineno))
        elif isinstance(node, ast.With) and any(_suppresses(item.context_expr) for item in node.items):
            found.append((node.lineno, node.end_lineno or node.lineno))
    return tuple(found)


def _catches(kinds: ast.expr | None) -> bool:
    """Return whether an except clause catches a failed import; None is the bare clause, which catches all."""
    return kinds is None or any(_name(node) in _CATCHES for node in ast.walk(kinds))


def _suppresses(call: ast.expr) -> bool:
    return (
        isinstance(call, ast.Call)
        and _name(call.func) == "suppress"
        and any(_catches(kind) for kind in call.args)
    )


def _name(node: ast.AST) -> str:
    return str(getattr(node, "attr", None) or getattr(node, "id", ""))


def _take_over() -> None:
    """Make the package, and its modules that are imported already, ShimModules."""
    package = sys.modules[SHIM]
    package.__class__ = ShimModule
    for name, value in list(vars(package).items()):
        _adopt(package, name, value)


_take_over()
