"""The trust lock: the code that was approved, byte for byte, so that later runs and CI accept nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardload._system.atomic_file import folder_locked, write_atomically
from shardload._system.json_text import parse_json
from shardload.checkpoint.sources.folder import LocalFile, mode_of
from shardload.checkpoint.sources.names import fault_of, is_commit
from shardload.errors import CorruptError, NotFoundError
from shardload.remote_code.code_changes import FileChange, change_of
from shardload.remote_code.lock_place import (
    is_noted,
    may_have_come,
    note,
    require_outside,
    require_own_project,
)

if TYPE_CHECKING:
    from shardload.checkpoint.sources.source import Source
    from shardload.remote_code.code import Code, CodeFile

LOCK_NAME = "shardload.lock"
_VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LINES = re.compile(r"(?:[0-9a-f]{8})*")


@dataclass(frozen=True, slots=True)
class LockedFile:
    """A file as it was approved: its SHA-256, and 32 bits of the SHA-256 of each of its lines, for a diff."""

    name: str
    sha256: str
    lines: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(cls, file: CodeFile) -> LockedFile:
        """Return a file as it is approved now."""
        return cls(file.name, file.sha256, line_hashes(file.content))


@dataclass(frozen=True, slots=True)
class Approval:
    """The approved code of one repo or folder. `commit` is None for a folder."""

    source: str
    commit: str | None
    files: dict[str, LockedFile]

    @classmethod
    def of(cls, source: Source, code: Code) -> Approval:
        """Return the approval of this code."""
        return cls(name_of(source), source.revision, {f.name: LockedFile.of(f) for f in code.files})

    @property
    def said(self) -> str:
        """What is approved, as one text: source, commit, and the names and hashes of the files."""
        files = sorted((name, file.sha256) for name, file in self.files.items())
        return json.dumps([self.source, self.commit, files])

    def covers(self, code: Code) -> bool:
        """Return whether every file of the code was approved, byte for byte."""
        return all(
            (locked := self.files.get(file.name)) is not None and locked.sha256 == file.sha256
            for file in code.files
        )

    def changes(self, code: Code) -> tuple[FileChange, ...]:
        """Return the differences of the code from what was approved, except for files that it no longer needs."""
        found = []
        for file in code.files:
            locked = self.files.get(file.name)
            if locked is None or locked.sha256 != file.sha256:
                before = None if locked is None else locked.lines
                found.append(change_of(file.name, before, line_hashes(file.content), file.content))
        return tuple(found)


@dataclass(frozen=True)
class TrustLock:
    """A lock file's approvals, one a source."""

    path: Path
    approvals: tuple[Approval, ...] = ()

    @classmethod
    def read(cls, path: Path, approve: str = "shardload trust") -> TrustLock:
        """Read a lock file, which the command `approve` would write where there is none.

        Raises NotFoundError, AccessError, and CorruptError for a file that is not one.
        """
        try:
            file = LocalFile(path.name, path)
        except NotFoundError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            raise NotFoundError(
                f"there is no lock file {path.name}",
                where=str(path.absolute()),
                cure=f"approve the code first: `{approve}` writes one",
            ) from error
        content = file.read_at(0, file.size)
        try:
            return cls(path, _approvals(parse_json(content, path.name)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptError(
                f"{path.name} is not a lock file of shardload: {error}",
                where=str(path.absolute()),
                cure="restore it from version control, or remove it and approve again with `shardload trust`",
                code=getattr(error, "code", None),
            ) from error

    @classmethod
    def at(cls, path: Path) -> TrustLock:
        """Read a lock file, or return an empty one where there is none."""
        return cls.read(path) if mode_of(path) else cls(path)

    @classmethod
    def approve(cls, path: Path, source: Source, code: Code) -> TrustLock:
        """Add this user's approval of a source's code to a lock file, and return the lock as it is then.

        Other threads and processes may do so at the same time: every approval is kept. Raises UnsafeError where the
        approval would not count, and where the file is a link.
        """
        require_own_project(path, source, code)
        approval = Approval.of(source, code)
        with folder_locked(path.absolute().parent):
            lock = cls.at(path).with_approval(approval)
            lock.write()
            note(path, approval.said, needed=may_have_come(path, source, code))
        return lock

    def with_approval(self, approval: Approval) -> TrustLock:
        """Return the lock with one more approval, in place of an older one of the same source."""
        kept = [other for other in self.approvals if other.source != approval.source]
        return TrustLock(self.path, (*kept, approval))

    def write(self) -> None:
        """Write the lock file, completely or not at all, in an order that keeps its diffs short."""
        entries = [
            {
                "source": approval.source,
                "commit": approval.commit,
                "files": {
                    name: {"sha256": file.sha256, "lines": "".join(file.lines)}
                    for name, file in sorted(approval.files.items())
                },
            }
            for approval in sorted(self.approvals, key=lambda a: a.source)
        ]
        text = json.dumps({"version": _VERSION, "approved": entries}, indent=1)
        write_atomically(self.path, f"{text}\n".encode())

    def commit_of(self, repo: str) -> str | None:
        """Return the commit at which a Hub repo's code was approved, or None."""
        return next((a.commit for a in self.approvals if a.source == repo), None)

    def approves(self, source: Source, code: Code) -> bool:
        """Return whether this user approved these very bytes, for a Hub repo under the repo's name.

        Where the lock file may have come with the code, only what this user noted counts.
        """
        covering = self._covering(source, code)
        foreign = bool(covering) and may_have_come(self.path, source, code)
        return any(not foreign or is_noted(self.path, approval.said) for approval in covering)

    def is_foreign(self, source: Source, code: Code) -> bool:
        """Return whether the file lists these very bytes, and may have come with them."""
        return bool(self._covering(source, code)) and not self.approves(source, code)

    def nearest(self, source: Source, code: Code) -> Approval | None:
        """Return the approval that this code most likely descends from, or None."""
        names = {file.name for file in code.files}
        own = [approval for approval in self._candidates(source) if approval.source == name_of(source)]
        alike = own or [a for a in self._candidates(source) if names & a.files.keys()]
        return max(alike, key=lambda a: len(names & a.files.keys()), default=None)

    def _covering(self, source: Source, code: Code) -> list[Approval]:
        return [approval for approval in self._candidates(source) if approval.covers(code)]

    def _candidates(self, source: Source) -> list[Approval]:
        require_outside(self.path, source)
        return [a for a in self.approvals if source.is_local or a.source == name_of(source)]


def lock_path(given: object = None) -> Path:
    """Return the path of the lock file: the given one, else $SHARDLOAD_LOCK, else ./shardload.lock."""
    if isinstance(given, os.PathLike):
        return Path(given)
    return Path(os.environ.get("SHARDLOAD_LOCK") or LOCK_NAME)


def name_of(source: Source) -> str:
    """Return the name of a source in a lock file: `org/name`, or the folder as it was given."""
    return source.label.rpartition("@")[0] if source.revision else source.label


def approving(source: Source, lock: Path | None = None) -> str:
    """Return the command line that approves the code of a source, in a lock file other than the usual one too."""
    return approving_repo(name_of(source), source.revision, lock)


def approving_repo(name: str, revision: str | None, lock: Path | None) -> str:
    """Return the same for a folder or a repo by name."""
    words = ["shardload", "trust", name]
    if revision:
        words += ["--revision", revision]
    if lock is not None and lock.absolute() != lock_path().absolute():
        words += ["--lock", str(lock)]
    return shlex.join(words)


def line_hashes(content: bytes) -> tuple[str, ...]:
    """Return 32 bits of the SHA-256 of each line, in hex: enough to say which line is new, not to approve it."""
    return tuple(hashlib.sha256(line).hexdigest()[:8] for line in content.split(b"\n"))


def _approvals(document: Any) -> tuple[Approval, ...]:
    if document["version"] != _VERSION:
        raise ValueError(f"its version is {document['version']!r}, this shardload writes {_VERSION}")
    return tuple(_approval(entry) for entry in document["approved"])


def _approval(entry: dict[str, Any]) -> Approval:
    source, commit = entry["source"], entry["commit"]
    if not isinstance(source, str) or (commit is not None and not is_commit(commit)):
        raise ValueError(f"{source!r} at {commit!r} names no source at a commit")
    files = {name: _locked_file(name, file) for name, file in entry["files"].items()}
    return Approval(source, commit, files)


def _locked_file(name: str, entry: dict[str, str]) -> LockedFile:
    sha256, lines = entry["sha256"], entry["lines"]
    if fault_of(name) or not _SHA256.fullmatch(sha256) or not _LINES.fullmatch(lines):
        raise ValueError(f"the entry of {name!r} is not a name with its hashes")
    return LockedFile(name, sha256, tuple(lines[at : at + 8] for at in range(0, len(lines), 8)))
