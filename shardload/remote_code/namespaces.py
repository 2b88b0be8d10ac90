"""The packages that trusted repos' modules live in, and the finder by which Python imports them."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import sys
import threading
from typing import TYPE_CHECKING, Any

from shardload.errors import UntrustedCodeError, Wording
from shardload.remote_code.bound_imports import builtins_for
from shardload.remote_code.code import PACKAGE
from shardload.remote_code.namespace import Namespace
from shardload.remote_code.process_flags import restored_flags

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType

    from shardload.remote_code.code import Base, Code, CodeFile

_lock = threading.Lock()
_trusted: dict[str, Namespace] = {}


def trust(code: Code, base: Base) -> Namespace:
    """Allow this code to be imported in this process, and return its namespace. Runs nothing itself.

    The caller has passed the gate (`require_trust`) before.
    """
    package = code.namespace(base)
    with _lock:
        # Not left to the import of the package: another thread may be importing it just now, and then Python takes the
        # half-made package as the parent and looks for this module without the finder.
        install_finder()
        return _trusted.setdefault(package, Namespace(package, code, base))


def namespace_of(module_name: str) -> Namespace | None:
    """Return the trusted namespace that a module's full name lies in, or None."""
    return _trusted.get(".".join(module_name.split(".")[: PACKAGE.count(".") + 2]))


def install_finder() -> None:
    """Put the finder of repos' modules before Python's own finders; `sys.path` is not changed."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _spec(namespace: Namespace, name: str) -> importlib.machinery.ModuleSpec | None:
    """Return the spec of one module of a namespace by its full name; None when the code lacks it."""
    module = name[len(namespace.package) + 1 :]
    if module and module not in namespace.code.modules:
        return None
    file = namespace.code.modules.get(module)
    is_package = not module or file is None or file.name.endswith("/__init__.py")
    loader = _Loader(namespace, file, is_package)
    spec = importlib.machinery.ModuleSpec(
        name, loader, origin=str(file.path) if file else None, is_package=is_package
    )
    # `__file__` is the real file: code looks beside itself, and tracebacks and torch.jit read its lines.
    spec.has_location = file is not None
    return spec


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the import system's signature
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(f"{PACKAGE}."):
            return None
        namespace = namespace_of(fullname)
        if namespace is None:
            raise UntrustedCodeError(
                "an object needs a repo's own code, which was not trusted in this process; nothing was run",
                where=fullname,
                cure=Wording(
                    "load the repo it came from first: shardload.from_pretrained(where, {trust_remote_code})",
                    trust_remote_code=True,
                ),
            )
        return _spec(namespace, fullname)


class _Loader(importlib.abc.InspectLoader):
    """Runs the bytes that were trusted, whatever the file holds now."""

    def __init__(self, namespace: Namespace, file: CodeFile | None, is_package: bool) -> None:
        self.namespace = namespace
        self.file = file
        self._is_package = is_package

    def is_package(self, fullname: str) -> bool:  # noqa: ARG002 - the import system's signature
        return self._is_package

    def get_source(self, fullname: str) -> str:  # noqa: ARG002
        return importlib.util.decode_source(self.file.content) if self.file else ""

    def get_code(self, fullname: str) -> CodeType | None:  # noqa: ARG002
        return (
            compile(self.file.content, str(self.file.path), "exec", dont_inherit=True) if self.file else None
        )

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = builtins_for(self.namespace)
        code = self.get_code(module.__name__)
        if code is None or self.file is None:
            return
        source = self.get_source(module.__name__)
        _remember_lines(self.file, source)
        from shardload.model.meta_init import unseen

        # A constructor may import it, and what it makes stays for later loads: not on meta, not in this load's dtype.
        with restored_flags(source), unseen():
            exec(code, vars(module))  # noqa: S102 - the gate was passed: see `trust`


def _remember_lines(file: CodeFile, source: str) -> None:
    # torch.jit.script compiles a function from linecache's lines: they must be the trusted ones. An entry without a
    # modification time is never refreshed from the file.
    lines = source.splitlines(keepends=True)
    entry: Any = (len(source), None, lines, str(file.path))
    linecache.cache[str(file.path)] = entry
