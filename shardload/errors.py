"""Every error that shardload raises on purpose.

ShardloadError
├── UsageError            an argument is wrong or missing                       exit code 2
│   └── NoInverseError    a rule of a key map that can't be undone              exit code 2
├── NotFoundError         a folder, file, repo, revision or tensor is not there exit code 2
│   └── AccessError       it is there, but not for this token                   exit code 2
├── NoSpaceError          the disk is full, or would be                         exit code 2
├── MemoryLimitError      the load takes more memory than it was allowed        exit code 2
├── UnsupportedError      known, named, and not done by this version            exit code 2
├── MismatchError         checkpoint (or adapter) and model disagree            exit code 1
├── RemoteCodeError       a repo's own code failed, or asks for what is lacking exit code 1
├── CorruptError          bytes are not what they claim to be                   exit code 4
└── UnsafeError           it would run or reach something that was not allowed  exit code 4
    └── UntrustedCodeError  code of a repo that nobody has trusted              exit code 4
"""

from __future__ import annotations

from typing import Any


class ShardloadError(Exception):
    """What went wrong, where, and what to do about it.

    `what` is one sentence; `where` names the file, key or argument; `cure` says what to do. `str()` shows
    all three, a line each, with control and bidi characters escaped: names in files are anybody's.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | None = None, cure: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.cure = cure

    def __str__(self) -> str:
        """Return the message: what, then `where:` and `cure:` lines for the parts that are known."""
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.cure:
            lines.append(f"  cure:  {self.cure}")
        return "\n".join(printable(line) for text in lines for line in text.split("\n"))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with the keyword parts and the report: errors cross process pools."""
        return (_rebuild, (type(self), self.what, self.where, self.cure), vars(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the error as JSON-ready data: kind, what, where, cure."""
        return {"kind": type(self).__name__, "what": self.what, "where": self.where, "cure": self.cure}


def printable(text: str) -> str:
    r"""Return a text on one line: what is not printable (control, bidi, invisible) as `\n`, `\x1b`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _rebuild(kind: type[ShardloadError], what: str, where: str | None, cure: str | None) -> ShardloadError:
    return kind(what, where=where, cure=cure)


class UsageError(ShardloadError, ValueError):
    """An argument is wrong or missing."""


class NoInverseError(UsageError):
    """A rule of a key map can't be undone, or not by what is known of it."""


class NotFoundError(ShardloadError):
    """A folder, file, repo, revision or tensor is not there."""


class AccessError(NotFoundError):
    """The repo exists, but this token (or no token) may not read it."""


class NoSpaceError(ShardloadError):
    """The disk is full, or would be: said before anything is written where it can be known."""


class MemoryLimitError(ShardloadError):
    """The load would take more anonymous memory than `max_memory`: said before a weight is read, with both figures."""


class UnsupportedError(ShardloadError):
    """The thing is known by name, and this version does not do it."""


class MismatchError(ShardloadError):
    """Checkpoint and model disagree; nothing was loaded.

    `report` is the `Report` (or `AdapterReport`) with every fault in it, or None.
    """

    exit_code = 1
    report: Any = None


class RemoteCodeError(ShardloadError):
    """A repo's own code failed while it was imported or constructed, or asks for what is lacking."""

    exit_code = 1


class CorruptError(ShardloadError):
    """Bytes are not what they claim to be: truncated, overlapping, contradicting their index, header or hash.

    `report` is the `Verification` with every file in it where hashes were compared, or None.
    """

    exit_code = 4
    report: Any = None


class UnsafeError(ShardloadError):
    """Going on would run or reach something that the caller did not allow."""

    exit_code = 4


class UntrustedCodeError(UnsafeError):
    """Code of a repo would have to run, and nobody has trusted these bytes.

    `changes` are the files that differ from what a lock file approves (`FileChange`, with the lines that are new).
    """

    changes: tuple[Any, ...] = ()
