"""Importing the classes of a repo's code: on the stand-in, with parts of the library, or on the whole library."""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from shardload.errors import Cures, RemoteCodeError, ShardloadError, UnsafeError, UsageError, Wording, keyword
from shardload.remote_code.auto_map import ClassRef, config_entry, model_entries
from shardload.remote_code.code import collect, file_of
from shardload.remote_code.consents import Consent, note
from shardload.remote_code.failures import as_lacking, explain, lacks_a_name, note_failure, release_of
from shardload.remote_code.library import is_installed
from shardload.remote_code.namespaces import namespace_of
from shardload.remote_code.namespaces import trust as trusted_namespace
from shardload.remote_code.trust import locked_commit, require_trust, untrusted_other_repo
from shardload.where import RemoteBase

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardload.checkpoint.sources.source import Source
    from shardload.remote_code.code import Base, Code
    from shardload.remote_code.namespace import Namespace
    from shardload.where import CodeTrust

GENERATE = ClassRef("custom_generate.generate", "generate")
"""A repo's own way to generate, which no `auto_map` names: it is there where its file is."""
GENERATE_FILE = "custom_generate/generate.py"

_lock = threading.Lock()
_found_base: dict[str, Base] = {}  # for code that the stand-in alone can't serve


@dataclass(frozen=True)
class RepoCode:
    """The code of one repo that the caller consented to: its config class and model classes, in one namespace."""

    source: Source
    code: Code
    wanted: RemoteBase = "auto"
    config_json: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    @property
    def written_for(self) -> str | None:
        """The release of transformers that its config.json names, or None."""
        return release_of(self.config_json)

    @property
    def base(self) -> Base:
        """Who serves its imports of transformers: the caller's choice, or the first that has shown no lack."""
        if self.wanted != "auto":
            return self.wanted
        return _found_base.get(self.code.sha256("shim"), "shim")

    @property
    def namespace(self) -> Namespace:
        """The namespace that its modules live in now."""
        return trusted_namespace(self.code, self.base)

    def load(self, ref: ClassRef) -> Any:
        """Import the class, as `loaded` does."""
        return self.loaded(ref)[0]

    def loaded(self, ref: ClassRef) -> tuple[Any, Namespace]:
        """Import the class; return it and its namespace, from which another thread may move the repo on at any time.

        When the stand-in lacks a name, parts of the installed transformers serve, or all of it. Raises RemoteCodeError,
        with file and line, when the code fails or needs something that is not there.
        """
        namespace = self.namespace
        try:
            return self._import(namespace, ref), namespace
        except (Exception, SystemExit) as error:
            if self.fall_back(error, namespace):
                return self.loaded(ref)
            raise explain(error, namespace, f"importing {ref}", self.written_for) from error

    def fall_back(self, error: BaseException, namespace: Namespace) -> bool:
        """Let the next base serve the repo: parts where the stand-in lacks a name, the whole library where parts fail.

        Returns False where no other base would help. Raises the error that names what is missing when transformers
        is not installed, or when the caller chose who serves.
        """
        lacking = lacks_a_name(error)
        if namespace.base == "transformers" or not (lacking or self._parts_failed(error, namespace)):
            return False
        if self.wanted != "auto" or not is_installed():
            missing = as_lacking(error, namespace, self.written_for)
            raise missing from (None if missing is error else error)
        note_failure(error, namespace)
        with _lock:
            code = self.code.sha256("shim")
            if _found_base.get(code, "shim") == namespace.base:  # another thread may have moved it on
                _found_base[code] = "parts" if namespace.base == "shim" else "transformers"
        return True

    def serve_by(self, base: Base) -> None:
        """Let this base serve the repo again, where the tries of a class that was not taken have moved it on."""
        if self.wanted == "auto":
            with _lock:
                _found_base[self.code.sha256("shim")] = base

    def _parts_failed(self, error: BaseException, namespace: Namespace) -> bool:
        """Return whether code failed in a way that the library as a whole may not: its parts are its files alone."""
        return (
            namespace.base == "parts"
            and self.wanted == "auto"
            and isinstance(error, Exception)
            and not isinstance(error, (ShardloadError, MemoryError))
        )

    def owns(self, obj: Any) -> bool:
        """Return whether an object's class is of this code, whoever serves it."""
        namespace = namespace_of(type(obj).__module__)
        return namespace is not None and namespace.code.sha256("shim") == self.code.sha256("shim")

    def _import(self, namespace: Namespace, ref: ClassRef) -> Any:
        file = file_of(ref.module, frozenset(f.name for f in self.code.files), self.code.label)
        module = importlib.import_module(f"{namespace.package}.{self.code.module_of(file)}")
        if not hasattr(module, ref.name):
            raise RemoteCodeError(
                f"auto_map names the class {ref}, and the file does not define it", where=str(module.__file__)
            )
        return getattr(module, ref.name)


def open_code(
    source: Source,
    config_json: Mapping[str, Any] | None,
    ref: ClassRef,
    trust: CodeTrust,
    beside: Sequence[ClassRef] | None = None,
) -> RepoCode:
    """Return the code that a class of `auto_map` needs, where the caller consented to it.

    The config class, the model classes and `generate` of one repo share one namespace, so that they see the same
    classes, and are consented to as one; or so do the classes `beside` it, where these are given. Raises
    UntrustedCodeError before anything runs, and UsageError for a `remote_base` that is not possible.
    """
    require_base(trust.remote_base)
    home = source
    argument: Literal["revision", "code_revision"] = "revision"
    if not is_own(ref, source):
        if not trust.allows_code:
            raise untrusted_other_repo(str(ref))  # the other repo is not even opened
        home, argument = other_source(ref, trust), "code_revision"
    code = collect(
        home, _modules_beside(ref, source, home, all_refs(source, config_json) if beside is None else beside)
    )
    require_trust(home, code, trust, argument)
    note(code, Consent(source, config_json, trust))
    return RepoCode(home, code, trust.remote_base, config_json)


def require_base(remote_base: str) -> None:
    """Raise UsageError for an unknown base, and for one that needs transformers where that is not installed."""
    known = get_args(RemoteBase)
    if remote_base not in known:
        raise UsageError(
            f"{remote_base!r} can't serve a repo's imports of transformers",
            where=keyword("remote_base"),
            cure=f"choose one of: {', '.join(known)}",
        )
    if remote_base in ("parts", "transformers") and not is_installed():
        asked = "the real transformers is" if remote_base == "transformers" else "parts of transformers are"
        raise UsageError(
            f"{asked} asked for, and it is not installed",
            where=keyword("remote_base"),
            cure=Cures("pip install transformers", Wording("leave {remote_base}", remote_base="auto")),
        )


def own_code(source: Source, config_json: Mapping[str, Any] | None) -> Code | None:
    """Return the code that loading the repo's model would run from the repo itself; None without any."""
    own = [ref for ref in all_refs(source, config_json) if is_own(ref, source)]
    return collect(source, _modules_beside(own[0], source, source, own)) if own else None


def other_repos(source: Source, config_json: Mapping[str, Any] | None) -> list[ClassRef]:
    """Return the classes that `auto_map` takes from other repos."""
    return [ref for ref in all_refs(source, config_json) if not is_own(ref, source)]


def all_refs(source: Source, config_json: Mapping[str, Any] | None) -> list[ClassRef]:
    """Return what a load of the model may run: the config class, the model classes, and the repo's own `generate`."""
    config = config_entry(config_json)
    generate = [GENERATE] if GENERATE_FILE in source.names() else []
    return [*([config] if config else []), *model_entries(config_json).values(), *generate]


def is_own(ref: ClassRef, source: Source) -> bool:
    """Return whether the class is in the source itself; a repo saved from a load names itself."""
    return ref.repo is None or source.label.split("@")[0] == ref.repo


def _modules_beside(ref: ClassRef, source: Source, home: Source, refs: Sequence[ClassRef]) -> list[str]:
    """Return the modules of all entries of the same repo, except for modules that the repo does not have."""
    same = [r for r in refs if r.repo == ref.repo or (is_own(r, source) and is_own(ref, source))]
    names = frozenset(home.names())
    there = {r.module for r in same if f"{r.module.replace('.', '/')}.py" in names}
    return sorted({ref.module, *there})


def other_source(ref: ClassRef, trust: CodeTrust) -> Source:
    """Open the other repo that an entry of `auto_map` takes its class from. Runs nothing; raises typed errors."""
    from shardload.checkpoint.sources import find_source

    repo = str(ref.repo)
    found, _ = find_source(trust.hub.elsewhere(repo, trust.code_revision or locked_commit(trust, repo)))
    if found.is_local:
        raise UnsafeError(
            f"auto_map takes code from the Hub repo {ref.repo}, and a folder of that name on this disk hides it",
            where=found.label,
            cure="run from another working directory",
        )
    return found
