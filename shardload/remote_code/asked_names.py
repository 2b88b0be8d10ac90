"""asked_names: the names of transformers that a repo's code uses, and the stand-in's answers. Runs none of the code."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardload.library_parts.model_files import read
from shardload.remote_code.asked_parts import asked_parts, part_of
from shardload.remote_code.importer import own_code
from shardload.remote_code.imports import home_of
from shardload.transformers_shim.front import Answer, guarded_lines, has_module, kind_of_answer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shardload.checkpoint.sources.source import Source
    from shardload.remote_code.code import Code, CodeFile


@dataclass(frozen=True, slots=True)
class AskedName:
    """A name of transformers ("transformers.x.Y") that a line of the repo's code asks for, and what it gets.

    `part` is the installed library's own file that would serve the name where the stand-in's answer does not do.
    """

    name: str
    answer: Answer
    file: str
    line: int
    part: str | None = None


@dataclass(frozen=True, slots=True)
class AskedPackage:
    """A package that the code imports. A `guarded` one stands inside a `try`, an `if` or a function."""

    name: str
    installed: bool
    guarded: bool
    file: str
    line: int


def asked_names(
    source: Source, config_json: Mapping[str, Any] | None
) -> tuple[tuple[AskedName, ...], tuple[AskedPackage, ...]]:
    """Return the names of transformers, and the other packages, that the code behind the model uses.

    Each name is listed once, at the line that needs it most. Names that code computes at run time are not found.
    Raises RemoteCodeError where a file is not valid Python.
    """
    code = own_code(source, config_json)
    names: dict[str, AskedName] = {}
    packages: dict[str, AskedPackage] = {}
    for file in code.files if code else ():
        reader = _Reader(file, code)
        for name in reader.names():
            if name.name not in names or name.answer == "lacks it":
                names[name.name] = name
        for package in reader.packages():
            if package.name not in packages or not package.guarded:
                packages[package.name] = package
    return tuple(sorted(names.values(), key=_place)), tuple(sorted(packages.values(), key=_place))


def library_files(source: Source, config_json: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the SHA-256 of the installed library's files that would run beside the code as parts, by their modules."""
    code = own_code(source, config_json)
    modules = asked_parts(file.content for file in code.files) if code else ()
    return {module: hashlib.sha256(read(module)).hexdigest() for module in modules}


def _place(asked: AskedName | AskedPackage) -> tuple[str, int, str]:
    return asked.file, asked.line, asked.name


class _Reader:
    """One file's imports and its lookups on the modules that it imported."""

    def __init__(self, file: CodeFile, code: Code | None) -> None:
        self.file = file
        self.repo_files = frozenset(f.name for f in code.files) if code else frozenset()
        self.tree = ast.parse(file.content)
        self.guards = guarded_lines(importlib.util.decode_source(file.content))
        self.perhaps = [
            (node.body[0].lineno, node.end_lineno or node.lineno)
            for node in ast.walk(self.tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.If))
        ]

    def names(self) -> Iterator[AskedName]:
        aliases: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and _top(node.module) == "transformers":
                inside = str(node.module).partition(".")[2]
                for alias in node.names:
                    yield self._asked(inside, alias.name, node.lineno)
                    own = f"{inside}.{alias.name}".lstrip(".")
                    if has_module(own):
                        aliases[alias.asname or alias.name] = own
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if _top(alias.name) == "transformers":
                        inside = alias.name.partition(".")[2]
                        aliases[alias.asname or "transformers"] = inside if alias.asname else ""
                        if inside:
                            yield self._asked("", inside, node.lineno)
        yield from self._lookups(aliases)

    def _lookups(self, aliases: dict[str, str]) -> Iterator[AskedName]:
        """Yield `transformers.x.Y` and similar lookups: the whole chain, as far as it goes through modules."""
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.Attribute):
                continue
            owner, path = node.value, list[str]()
            while isinstance(owner, ast.Attribute):
                path.insert(0, owner.attr)
                owner = owner.value
            if not isinstance(owner, ast.Name) or owner.id not in aliases:
                continue
            module = ".".join(part for part in (aliases[owner.id], *path) if part)
            if (not module or has_module(module)) and not node.attr.startswith("__"):
                yield self._asked(module, node.attr, node.lineno)

    def packages(self) -> Iterator[AskedPackage]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [str(node.module)]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                continue
            for top in dict.fromkeys(_top(module) for module in modules):
                if top in sys.stdlib_module_names or top in {"torch", "transformers"}:
                    continue
                if home_of(top, self.file.name, self.repo_files) is None:
                    guarded = self._within(node.lineno, (*self.guards, *self.perhaps))
                    yield AskedPackage(top, _installed(top), guarded, self.file.name, node.lineno)

    def _asked(self, module: str, name: str, line: int) -> AskedName:
        full = ".".join(part for part in ("transformers", module, name) if part)
        answer = kind_of_answer(module, name, guarded=self._within(line, self.guards))
        part = None if answer == "has it" else part_of(module, name)
        return AskedName(full, answer, self.file.name, line, part)

    def _within(self, line: int, spans: tuple[tuple[int, int], ...] | Any) -> bool:
        return any(first <= line <= last for first, last in spans)


def _top(module: str | None) -> str:
    return str(module).split(".", maxsplit=1)[0]


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
