"""Trap: a mistake that a loader can make, the test that knows it, and the functions that guard against it."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

from tests.mutants.mutation import mutations


@dataclass(frozen=True)
class Trap:
    """`guards` are functions, as "module:qualname", or imports that a module must not have, as "module:import torch".

    A mutant takes the fix out when its text contains `fix`; any mutant of the guards does when `fix` is empty.
    `exempt` says why no mutant of any function can take the fix out.
    """

    trap: str
    test: str
    guards: tuple[str, ...] = ()
    fix: str = ""
    exempt: str = ""


class Guard:
    """A function of the package, with the tree of its module. `function` is None when the guard is an absent import."""

    def __init__(self, name: str) -> None:
        module, _, self.qualname = name.partition(":")
        self.module: ModuleType = importlib.import_module(module)
        self.file = Path(str(self.module.__file__))
        self.tree = ast.parse(self.file.read_text())
        is_import = self.qualname.startswith("import ")
        self.function = None if is_import else function_of(self.module, self.qualname)

    def mutants(self) -> Iterator[str]:
        """Yield each mutant as text; `tree` is the mutant until the next one is asked for."""
        if self.function is None:
            self.tree.body += ast.parse(self.qualname).body
            yield f"{self.file.name}: `{self.qualname}` added"
            return
        node = self._node(self.function)
        for text in mutations(node):
            yield f"{self.file.name} {self.qualname}: {text}"

    def _node(self, function: FunctionType) -> ast.AST:
        return next(
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name == function.__code__.co_name
            and min([node.lineno, *(one.lineno for one in node.decorator_list)])
            == function.__code__.co_firstlineno
        )

    def put_in_place(self) -> None:
        """Give the function the code that it has in the tree. Raises ValueError when its closure does not fit."""
        if self.function is not None:
            whole = compile(ast.fix_missing_locations(self.tree), str(self.file), "exec", dont_inherit=True)
            old = self.function.__code__
            self.function.__code__ = next(
                code
                for code in _codes(whole)
                if (code.co_name, code.co_firstlineno) == (old.co_name, old.co_firstlineno)
            )


def _codes(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes(inner)


def function_of(module: ModuleType, qualname: str) -> FunctionType:
    """Return a function or method below its decorators. Raises AttributeError when there is none."""
    found: object = module
    for part in qualname.split("."):
        found = inspect.getattr_static(found, part)
    found = getattr(found, "fget", None) or getattr(found, "__func__", None) or found
    assert isinstance(found, Callable), qualname
    inner = inspect.unwrap(found)
    assert isinstance(inner, FunctionType), qualname
    return inner
