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

        >>> import shardload
        >>> try:
        ...     shardload.KeyMap().rename("h.{}.w", "w")
        ... except shardload.ShardloadError as error:
        ...     print(type(error).__name__, error.where, sep=": ")
        UsageError: 'h.{}.w' -> 'w'

    `what` is one sentence; `where` names the file, key or argument; `cure` says what to do. `str()` shows
    all three, a line each, with control and bidi characters escaped: names in files are untrusted.
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
        """Return the error as JSON-ready data: kind, what, where, cure.

        >>> import shardload
        >>> shardload.NotFoundError("the folder is empty", where="tiny").to_dict()["what"]
        'the folder is empty'
        """
        return {"kind": type(self).__name__, "what": self.what, "where": self.where, "cure": self.cure}


def printable(text: str) -> str:
    r"""Return a text on one line: what is not printable (control, bidi, invisible) as `\n`, `\x1b`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _rebuild(kind: type[ShardloadError], what: str, where: str | None, cure: str | None) -> ShardloadError:
    return kind(what, where=where, cure=cure)


class UsageError(ShardloadError, ValueError):
    """An argument is wrong or missing.

    >>> import torch, shardload
    >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
    >>> shardload.from_pretrained("tiny", model_class=torch.nn.Linear, dtype="int3")
    Traceback (most recent call last):
    shardload.errors.UsageError: dtype='int3' is not a dtype ...
    """


class NoInverseError(UsageError):
    """A rule of a key map can't be undone, or not by what is known of it.

    >>> import shardload
    >>> shardload.KeyMap().drop("*.inv_freq").invert()
    Traceback (most recent call last):
    shardload.errors.NoInverseError: a drop has no inverse
      where: drop '*.inv_freq'
    """


class NotFoundError(ShardloadError):
    """A folder, file, repo, revision or tensor is not there.

    >>> import torch, shardload
    >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
    >>> shardload.open_checkpoint("tiny").read("wieght")
    Traceback (most recent call last):
    shardload.errors.NotFoundError: the checkpoint has no tensor 'wieght'
      where: tiny
      cure:  the nearest names: 'weight'
    """


class AccessError(NotFoundError):
    """The repo exists, but this token (or no token) may not read it.

    >>> import shardload
    >>> issubclass(shardload.AccessError, shardload.NotFoundError)
    True
    """


class NoSpaceError(ShardloadError):
    """The disk is full, or would be: said before anything is written where it can be known.

    >>> import shardload
    >>> shardload.NoSpaceError("30 GB are wanted, and 2 GB are free", where="/models").exit_code
    2
    """


class MemoryLimitError(ShardloadError):
    """The load would take more anonymous memory than `max_memory`: said before a weight is read, with both figures.

    >>> import torch, shardload
    >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
    >>> shardload.fill(torch.nn.Linear(4, 2), shardload.open_checkpoint("tiny"), max_memory=1000)
    Traceback (most recent call last):
    shardload.errors.MemoryLimitError: the load takes ...
    """


class UnsupportedError(ShardloadError):
    """The thing is known by name, and this version does not do it.

    >>> import torch, shardload
    >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
    >>> shardload.from_pretrained("tiny", model_class=torch.nn.Linear, load_in_8bit=True)
    Traceback (most recent call last):
    shardload.errors.UnsupportedError: from_pretrained does not do load_in_8bit= in this version
      ...
    """


class MismatchError(ShardloadError):
    """Checkpoint and model disagree; nothing was loaded.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> try:
        ...     shardload.fill(torch.nn.Linear(4, 3), shardload.open_checkpoint("tiny"))
        ... except shardload.MismatchError as error:
        ...     for fault in error.report.faults:
        ...         print(fault.key, fault.model_shape, fault.stored_shape)
        bias (3,) (2,)
        weight (3, 4) (2, 4)

    `report` is the `Report` (or `AdapterReport`) with every fault in it, or None.
    """

    exit_code = 1
    report: Any = None


class RemoteCodeError(ShardloadError):
    """A repo's own code failed while it was imported or constructed, or asks for what is lacking.

    >>> from pathlib import Path
    >>> import shardload
    >>> size = Path("config.json").write_text('{"auto_map": {"AutoModel": "net.Net"}}')
    >>> size = Path("net.py").write_text("import a_package_that_is_not_installed")
    >>> shardload.resolve_class(".", trust_remote_code=True)
    Traceback (most recent call last):
    shardload.errors.RemoteCodeError: ...
    """

    exit_code = 1


class CorruptError(ShardloadError):
    """Bytes are not what they claim to be: truncated, overlapping, contradicting their index, header or hash.

        >>> import torch, shardload
        >>> (file,) = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> size = file.write_bytes(file.read_bytes()[:-8])
        >>> shardload.open_checkpoint("tiny")
        Traceback (most recent call last):
        shardload.errors.CorruptError: ...

    `report` is the `Verification` with every file in it where hashes were compared, or None.
    """

    exit_code = 4
    report: Any = None


class UnsafeError(ShardloadError):
    """Going on would run or reach something that the caller did not allow.

    >>> from pathlib import Path
    >>> import shardload
    >>> index = '{"weight_map": {"w": "../secret.safetensors"}}'
    >>> size = Path("model.safetensors.index.json").write_text(index)
    >>> shardload.open_checkpoint(".")
    Traceback (most recent call last):
    shardload.errors.UnsafeError: ...
    """

    exit_code = 4


class UntrustedCodeError(UnsafeError):
    """Code of a repo would have to run, and nobody has trusted these bytes.

        >>> from pathlib import Path
        >>> import shardload
        >>> size = Path("config.json").write_text('{"auto_map": {"AutoModel": "net.Net"}}')
        >>> size = Path("net.py").write_text("class Net: ...")
        >>> shardload.resolve_class(".")
        Traceback (most recent call last):
        shardload.errors.UntrustedCodeError: ...

    `changes` are the files that differ from what a lock file approves (`FileChange`, with the lines that are new).
    """

    changes: tuple[Any, ...] = ()
