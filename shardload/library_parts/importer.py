"""The package of a release's parts, and the finder and the imports by which its files see the stand-in.

A file of the library runs as it is on the disk. What it imports of transformers, by a relative or an absolute name, is
answered by `front.py`: other model files are parts too, nearly everything else is the stand-in's.
"""

from __future__ import annotations

import builtins
import functools
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from shardload.library_parts.model_files import read
from shardload.library_parts.release import PACKAGE, installed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import CodeType, FrameType


# Modules of others for which there are bridges: checks of settings, and a context that takes seconds to import.
_BRIDGED = frozenset({"huggingface_hub.dataclasses", "torch._dynamo._trace_wrapped_higher_order_op"})


_asked: dict[str, set[str]] = {}  # the parts that a repo's package, or a part, asked for
_ran: dict[str, str] = {}  # the SHA-256 of each file that ran


def part_module(inside: str) -> ModuleType:
    """Import a file of the installed release ("models.llama.modeling_llama") as a part, and return its module."""
    release = installed()
    if release is None:
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
    _asked.setdefault(_asker(), set()).add(inside)
    return importlib.import_module(f"{release.package}.{inside}")


def files_run(module: str) -> dict[str, str]:
    """Return the library's files that have run for a module of a repo, or for a part: their SHA-256, by their names.

    They are those that its code has asked for so far, in whatever way, and those that these asked for.
    """
    inside = _split(module)[1] if module.startswith(f"{PACKAGE}.v") else ""
    waiting, found = [inside or repo_of(module)], set[str]()
    while waiting:
        asker = waiting.pop()
        if asker not in found:
            found.add(asker)
            waiting += _asked.get(asker, ())
    return {name: _ran[name] for name in sorted(found) if name in _ran}


def repo_of(module: str) -> str:
    """Return the package of a repo's code that a module lies in; "" for other modules."""
    return ".".join(module.split(".")[:4]) if module.startswith("shardload.remote_code.repos.") else ""


def _asker() -> str:
    """Return the repo's package or the part whose line asks for a part: the nearest in the stack."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        asker = _split(module)[1] if module.startswith(f"{PACKAGE}.v") else repo_of(module)
        if asker:
            return asker
        frame = frame.f_back
    return ""


class World(NamedTuple):
    """What a part's file finds: the modules of its transformers, answers for older names, and what its classes get.

    `module(inside)` returns the module of a dotted name ("" is transformers); `older_name(inside, name, frame)` answers
    for a name that a file lacks; `dress(module)` is called once a file has run.
    """

    module: Callable[[str], ModuleType]
    older_name: Callable[[str, str, FrameType], Any]
    dress: Callable[[ModuleType], None]


_giver: list[Callable[[], World]] = []


def hand_in(giver: Callable[[], World]) -> None:
    """Put the finder of parts before Python's own finders; `giver` makes the world when the first part is imported."""
    _giver[:] = [giver]
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@functools.cache
def _world() -> World:
    return _giver[0]()


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the import system's signature
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(f"{PACKAGE}.v"):
            return None
        release = installed()
        package, inside = _split(fullname)
        if release is None or package != release.package:
            there = "none is installed" if release is None else f"{release.name} is installed"
            raise ModuleNotFoundError(
                f"{fullname} is a part of another release of transformers than this process has: {there}",
                name=fullname,
            )
        file = release.file(inside)
        if file is None and not (release.folder / inside.replace(".", "/")).is_dir():
            return None
        runs = file is not None and file.name != "__init__.py"  # a package's own file only lists names
        loader = _Loader(fullname, str(file)) if runs else _PackageLoader()
        spec = importlib.machinery.ModuleSpec(
            fullname, loader, origin=str(file) if runs else None, is_package=not runs
        )
        spec.has_location = runs
        return spec


def _split(fullname: str) -> tuple[str, str]:
    """Return the package of a part's release, and the name of its module in transformers."""
    parts = fullname.split(".")
    depth = PACKAGE.count(".") + 2
    return ".".join(parts[:depth]), ".".join(parts[depth:])


class _PackageLoader(importlib.abc.Loader):
    """Makes a package without content; its modules are found one by one."""

    def exec_module(self, module: ModuleType) -> None:
        pass


class PartModule(ModuleType):
    """The module of a part. A name that the library's file lacks, and older files had, is the stand-in's answer."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _world().older_name(_split(self.__name__)[1], name, sys._getframe(1))


class _Loader(importlib.machinery.SourceFileLoader):
    """Runs a file of the library with the imports of a part, from the bytes that were hashed."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return PartModule(spec.name)

    def get_data(self, path: str) -> bytes:
        return read(_split(self.name)[1]) if path == self.path else super().get_data(path)

    def set_data(self, *_args: Any, **_kwargs: Any) -> None:
        """Write nothing into the library's folder."""

    def get_source(self, fullname: str) -> str:  # noqa: ARG002 - the import system's signature
        return importlib.util.decode_source(self.get_data(self.path))

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002
        """Compile the bytes that were read: Python's own cache beside the file is not among what was hashed."""
        return compile(self.get_data(self.path), self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import}
        code = self.get_code(module.__name__)
        # torch.jit.script and inspect read these lines: they must be the ones that ran.
        source = self.get_source(module.__name__)
        lines: Any = (len(source), None, source.splitlines(keepends=True), self.path)
        linecache.cache.setdefault(self.path, lines)
        _ran[_split(module.__name__)[1]] = hashlib.sha256(self.get_data(self.path)).hexdigest()
        exec(code, vars(module))  # noqa: S102 - a file of the installed library
        _world().dress(module)


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,  # noqa: A002 - the builtin's own signature
    locals: Mapping[str, Any] | None = None,  # noqa: A002
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """Import for one import statement of a part."""
    package = str((globals or {}).get("__package__") or "")
    if level > 0 and package.startswith(f"{PACKAGE}.v"):
        absolute = importlib.util.resolve_name("." * level + name, package)
        return _world().module(_split(absolute)[1])
    top, _, inside = name.partition(".")
    if level == 0 and top == "transformers":
        return _world().module(inside if fromlist else "")
    if name in _BRIDGED:
        return _world().module(name)
    return builtins.__import__(name, globals, locals, fromlist or (), level)
