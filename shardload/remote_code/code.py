"""The files of a repo's code: found by following imports, read once, identified by their content."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from shardload.errors import Cures, NotFoundError, RemoteCodeError, Wording
from shardload.remote_code.imports import imported_files

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from shardload.checkpoint.sources.source import Source

Base = Literal["shim", "parts", "transformers"]
"""Who serves the code's imports of transformers: shardload's stand-in; the stand-in, and for the library's models its
own files run beside the code; or the installed library."""

PACKAGE = "shardload.remote_code.repos"


@dataclass(frozen=True, slots=True)
class CodeFile:
    """One file that would run: its name in the repo, its bytes, and where they lie on this disk."""

    name: str
    content: bytes
    path: Path

    @property
    def sha256(self) -> str:
        """The SHA-256 of the bytes, in hex."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Code:
    """The files of one repo that its classes need. `modules` maps dotted module names to files.

    A module without a file is a folder without `__init__.py`. `label` is the source's. `untaken` are the repo's other
    Python files, which no import found by parsing leads to.
    """

    label: str
    files: tuple[CodeFile, ...]
    modules: dict[str, CodeFile | None] = field(repr=False)
    untaken: frozenset[str] = field(default=frozenset(), repr=False)

    def sha256(self, base: Base) -> str:
        """Return the hash over every file's name and bytes, and who serves its imports of transformers.

        With "parts" it covers the library's files that the code asks for, and its release.
        """
        digest = hashlib.sha256(base.encode())
        if base == "parts":
            from shardload.remote_code.asked_parts import fingerprint_of  # only with such files

            digest.update(fingerprint_of(file.content for file in self.files))
        for file in self.files:
            digest.update(f"\0{file.name}\0{len(file.content)}\0".encode())
            digest.update(file.content)
        return digest.hexdigest()

    def namespace(self, base: Base) -> str:
        """Return the package that this code's modules live in; other content gets another package."""
        return f"{PACKAGE}.h{self.sha256(base)[:32]}"

    def module_of(self, file_name: str) -> str:
        """Return the dotted name of a file's module within the namespace."""
        return next(module for module, file in self.modules.items() if file and file.name == file_name)


def collect(source: Source, modules: Iterable[str]) -> Code:
    """Return the files of these modules ("modeling_x", "sub.x") and of all that they import from their repo.

    Nothing is run. An import of a file that the repo lacks is no error here: it may be inside a `try`, so only running
    the code decides. Raises NotFoundError when one of `modules` itself is absent.
    """
    names = frozenset(source.names())
    waiting = [file_of(module, names, source.label) for module in modules]
    found: dict[str, CodeFile] = {}
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        path = source.open(name).local_path()
        found[name] = CodeFile(name, path.read_bytes(), path)
        waiting += sorted(_parse(found[name], names) - found.keys())
    files = tuple(found[name] for name in sorted(found))
    untaken = frozenset(name for name in names if name.endswith(".py")) - found.keys()
    return Code(source.label, files, _name_modules(files), untaken)


def has_file(module: str, names: frozenset[str]) -> bool:
    """Return whether a repo of these files has the module that auto_map names."""
    return any(candidate in names for candidate in _candidates(module))


def _candidates(module: str) -> tuple[str, ...]:
    nested = module.replace(".", "/")
    return f"{nested}/__init__.py", f"{nested}.py", f"{module}.py"


def file_of(module: str, names: frozenset[str], label: str) -> str:
    """Return the file of a module that auto_map names; raises NotFoundError when the repo has none."""
    for candidate in _candidates(module):
        if candidate in names:
            return candidate
    nested = module.replace(".", "/")
    raise NotFoundError(
        f"auto_map names the module {module}, and the repo has no file {nested}.py",
        where=label,
        cure=Cures("download the repo's .py files as well", Wording("pass {model_class}", model_class=...)),
    )


def _parse(file: CodeFile, names: frozenset[str]) -> frozenset[str]:
    try:
        return imported_files(file.content, file.name, names)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        line = getattr(error, "lineno", None)
        raise RemoteCodeError(
            f"the repo's code is not valid Python {_python()}: {str(error) or type(error).__name__}",
            where=f"{file.path}:{line}" if line else str(file.path),
        ) from error


def _python() -> str:
    import platform

    return platform.python_version()


def _name_modules(files: tuple[CodeFile, ...]) -> dict[str, CodeFile | None]:
    """Give every file a module name of plain identifiers, and every folder on the way a package."""
    modules: dict[str, CodeFile | None] = {}
    for file in files:
        *folders, last = file.name.removesuffix(".py").split("/")
        parents = [re.sub(r"\W", "_", folder) for folder in folders]
        for depth in range(1, len(parents) + 1):
            modules.setdefault(".".join(parents[:depth]), None)
        if last == "__init__":
            modules[".".join(parents)] = file
            continue
        own = re.sub(r"\W", "_", last)
        while modules.get(".".join((*parents, own))) is not None:
            own += "_"  # modeling-x.py beside modeling_x.py
        modules[".".join((*parents, own))] = file
    return modules
