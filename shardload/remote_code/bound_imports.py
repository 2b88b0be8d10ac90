"""What `import` means inside a repo's modules: its own files, and shardload's stand-in for transformers.

Every module of a repo has its own builtins, whose `__import__` and `importlib` do this. A function keeps the builtins
of the module that defines it, so an import inside a function works in the same way whenever it runs.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.metadata
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from shardload.remote_code.imports import home_of
from shardload.remote_code.star_imports import bring_old_names
from shardload.transformers_shim.host import host

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import FrameType

    from shardload.remote_code.namespace import Namespace

SHIM = "shardload.transformers_shim"


def builtins_for(namespace: Namespace) -> dict[str, Any]:
    """Return the builtins for a module of this namespace: Python's, with the namespace's `__import__`."""
    return {**vars(builtins), "__import__": _Importer(namespace)}


class _Importer:
    """`__import__` for one namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self._names = frozenset(file.name for file in namespace.code.files)
        self._importlib = _importlib_for(self)
        self._has_parts = namespace.base == "parts"

    def __call__(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002 - the builtin's own signature
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Import for one import statement of the repo's code."""
        importer = globals or {}
        if level == 0 and "*" in (fromlist or ()) and name.split(".", maxsplit=1)[0] == "torch":
            bring_old_names(importer)
        if level > 0:
            self._refuse_escape(name, importer, level)
        elif name.split(".", maxsplit=1)[0] == "importlib":
            return self._import_importlib(name, fromlist)
        elif (target := self.target_of(name, importer)) is not None:
            if target.startswith(SHIM):
                module = _import_from_shim(name, sys._getframe(1), fromlist, parts=self._has_parts)
            else:
                module = builtins.__import__(target, globals, locals, fromlist or (), 0)
            # `import a.b` binds `a`.
            if self._has_parts and not fromlist and target.startswith(SHIM):
                return importlib.import_module("shardload.library_parts.front").transformers()  # type: ignore[no-any-return]
            top = self.target_of(name.split(".", maxsplit=1)[0], importer)
            return module if fromlist else sys.modules[top or target]
        module = builtins.__import__(name, globals, locals, fromlist or (), level)
        of_library = level == 0 and name.split(".", maxsplit=1)[0] == "transformers"
        return _of_library(module, "*" in (fromlist or ())) if of_library else module

    def target_of(self, name: str, importer: Mapping[str, Any]) -> str | None:
        """Return the module that the code means by `name`, or None where the name is the real one."""
        top = name.split(".", maxsplit=1)[0]
        if top == "transformers":
            return None if self.namespace.base == "transformers" else SHIM + name.removeprefix("transformers")
        home = home_of(top, self._file_of(importer), self._names)
        if home is None:
            return None
        return ".".join(part for part in (self.namespace.package, home.replace("/", "."), name) if part)

    def _file_of(self, importer: Mapping[str, Any]) -> str:
        module = str(importer.get("__name__", "")).removeprefix(f"{self.namespace.package}.")
        file = self.namespace.code.modules.get(module)
        return file.name if file else ""

    def _import_importlib(self, name: str, fromlist: Sequence[str] | None) -> ModuleType:
        importlib.import_module(name)
        inner = name.partition(".")[2]
        found: Any = getattr(self._importlib, inner) if inner and fromlist else self._importlib
        return found  # type: ignore[no-any-return]

    def _refuse_escape(self, name: str, importer: Mapping[str, Any], level: int) -> None:
        package = str(importer.get("__package__") or "")
        if level > package.count(".") - self.namespace.package.count(".") + 1:
            raise ImportError(f"relative import of {'.' * level}{name} goes above the repo's root")


def _import_from_shim(
    name: str, asker: FrameType, fromlist: Sequence[str] | None = (), *, parts: bool
) -> ModuleType:
    # Only where code imports transformers.
    if parts:
        from shardload.library_parts import front

        return front.import_for(name, asker, fromlist)
    from shardload.transformers_shim.front import import_for

    return import_for(name, asker, fromlist)


def _of_library(module: ModuleType, star: bool = False) -> ModuleType:
    """Return a module of the installed transformers with loaders that run no code which was not approved."""
    front: Any = host().guarded(module)
    if not star:
        return front  # type: ignore[no-any-return]
    made = ModuleType(module.__name__)
    public = getattr(module, "__all__", None) or [each for each in vars(module) if not each.startswith("_")]
    vars(made).update({each: getattr(front, each) for each in public})
    return made


class _StandIn(ModuleType):
    """A module with everything of a real one, except for what is set on it."""

    def __init__(self, real: ModuleType) -> None:
        super().__init__(real.__name__, real.__doc__)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _importlib_for(importer: _Importer) -> ModuleType:
    """Return an `importlib` whose functions answer as this namespace's imports do."""
    stand_in, util, metadata = _StandIn(importlib), _StandIn(importlib.util), _StandIn(importlib.metadata)
    offered: dict[str, Callable[..., Any] | ModuleType] = {
        "import_module": _import_module_for(importer),
        "__import__": importer,
        "util": util,
        "metadata": metadata,
    }
    vars(stand_in).update(offered)

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        target = importer.target_of(name, sys._getframe(1).f_globals)
        return importlib.util.find_spec(target or name, package)

    def version(distribution_name: str) -> str:
        if distribution_name == "transformers" and importer.namespace.base != "transformers":
            return str(importlib.import_module(SHIM).__version__)
        return importlib.metadata.version(distribution_name)

    vars(util)["find_spec"] = find_spec
    vars(metadata)["version"] = version
    return stand_in


def _import_module_for(importer: _Importer) -> Callable[..., ModuleType]:
    def import_module(name: str, package: str | None = None) -> ModuleType:
        if name.startswith("."):
            inside = (package or "").startswith(importer.namespace.package)
            name = importlib.util.resolve_name(name, package)
            if inside and not name.startswith(f"{importer.namespace.package}."):
                raise ImportError(f"relative import of {name} goes above the repo's root")
            return importlib.import_module(name)
        target = importer.target_of(name, sys._getframe(1).f_globals)
        if target is None:
            module = importlib.import_module(name)
            return _of_library(module) if name.split(".", maxsplit=1)[0] == "transformers" else module
        return (
            _import_from_shim(name, sys._getframe(1), (), parts=importer.namespace.base == "parts")
            if target.startswith(SHIM)
            else importlib.import_module(target)
        )

    return import_module
