"""Where, CodeTrust: which checkpoint the caller means, and what its code may do; built from keywords, once."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Trust = bool | Literal["locked"] | os.PathLike[str]
"""The caller's consent: False, True, "locked" (what ./shardload.lock or $SHARDLOAD_LOCK approves), or a lock file."""

RemoteBase = Literal["auto", "shim", "parts", "transformers"]
"""Who serves a repo's imports of transformers; "auto" is the first of the others that lacks no name."""


STORES = frozenset({"s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "https", "http"})
"""The schemes of addresses in a store."""

_OPTIONS = {
    "revision": "--revision",
    "subfolder": "--subfolder",
    "variant": "--variant",
    "state_dict": "--state-dict",
    "cache_dir": "--cache-dir",
    "local_files_only": "--offline",
    "allow_links": "--allow-links",
    "disk": "--no-disk",
}
"""Fields of a place -> the options of the commands that read one."""


@dataclass(frozen=True)
class Where:
    """One checkpoint, adapter or repo, and how to reach it.

    `name` is a folder, a file, `org/name[@revision]` on the Hub, or an address in a store (`s3://bucket/prefix`). The
    other fields are the keywords of the same names in `open_checkpoint`.
    """

    name: str | os.PathLike[str]
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    subfolder: str | None = None
    variant: str | None = None
    state_dict: str | None = None
    allow_links: bool = False
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False, hash=False)
    disk: bool = True

    @property
    def is_in_store(self) -> bool:
        """Whether the name is an address in an object store or on a web server: `s3://…`, `https://…`."""
        scheme, mark, _ = self.name.partition("://") if isinstance(self.name, str) else ("", "", "")
        return bool(mark) and scheme.lower() in STORES

    @property
    def named_revision(self) -> str | None:
        """The revision that the caller named, as a keyword or in `org/name@revision`."""
        if self.revision or not isinstance(self.name, str) or "@" not in self.name or self.is_in_store:
            return self.revision or None
        return self.name.rpartition("@")[2]

    @property
    def as_arguments(self) -> str:
        """The place as a command takes it, shell-quoted, with the options that choose it; never a token.

        >>> Where("org/name", revision="v1", subfolder="text model").as_arguments
        "org/name --revision v1 --subfolder 'text model'"
        """
        options = (
            _OPTIONS[name] if isinstance(value, bool) else f"{_OPTIONS[name]} {shlex.quote(os.fspath(value))}"
            for name, value in self._chosen()
        )
        return " ".join([shlex.quote(os.fspath(self.name)), *options])

    @property
    def in_python(self) -> str:
        """The place as Python's first argument and keywords; never a token.

        >>> Where("org/name", revision="v1").in_python
        "'org/name', revision='v1'"
        """
        keywords = (
            f"{name}={value if isinstance(value, bool) else os.fspath(value)!r}"
            for name, value in self._chosen()
        )
        return ", ".join([repr(os.fspath(self.name)), *keywords])

    def _chosen(self) -> Iterator[tuple[str, Any]]:
        """Yield the fields that differ from the defaults, but for the name and the token."""
        given = ((name, getattr(self, name)) for name in _OPTIONS)
        return ((name, value) for name, value in given if bool(value) is not (name == "disk"))

    def elsewhere(self, name: str | os.PathLike[str], revision: str | None = None) -> Where:
        """Return another checkpoint, reached in the same way: token, cache, offline, links.

        Options of a store go to no other one.
        """
        here, there = _store_of(self.name), _store_of(name)
        options = self.storage_options if here in (None, there) else None
        return replace(
            self,
            name=name,
            revision=revision,
            subfolder=None,
            variant=None,
            state_dict=None,
            storage_options=options,
        )


def _store_of(name: str | os.PathLike[str]) -> str | None:
    """Return scheme and bucket, or host, of an address in a store; None for any other place."""
    scheme, mark, rest = os.fspath(name).partition("://")
    return f"{scheme}://{rest.partition('/')[0]}" if mark else None


@dataclass(frozen=True)
class CodeTrust:
    """What the caller allows a repo's code to do. Nothing else widens it.

    `revision` is the one that the caller named for the repo itself, `code_revision` that of another repo which holds
    the code; `hub` says how to reach that one.
    """

    trust_remote_code: Trust = False
    revision: str | None = None
    code_revision: str | None = None
    remote_base: RemoteBase = "auto"
    hub: Where = field(default_factory=lambda: Where(""))

    @property
    def asks_for_lock(self) -> bool:
        """Whether only code that a lock file approves may run."""
        allowed = self.trust_remote_code
        return isinstance(allowed, os.PathLike) or (isinstance(allowed, str) and allowed == "locked")

    @property
    def allows_code(self) -> bool:
        """Whether any code may run: True itself, "locked", or the path of a lock file."""
        return self.trust_remote_code is True or self.asks_for_lock


UNTRUSTED = CodeTrust()
"""What holds where the caller says nothing: none of a repo's code runs."""

PLACE_FIELDS = {each.name: each for each in fields(Where) if each.name != "name"}
TRUST_FIELDS = {each.name: each for each in fields(CodeTrust) if each.name not in {"revision", "hub"}}
KEYWORD_FIELDS = {**TRUST_FIELDS, **PLACE_FIELDS}
"""The fields that entry points take as keywords, by name, with their defaults."""

WhereLike = Where | str | os.PathLike[str]
"""What an entry point takes as its first argument."""
