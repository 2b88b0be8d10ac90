"""Every error that shardload raises on purpose.

ShardloadError                                                                    code             exit code
├── UsageError            an argument is wrong or missing                         E-USAGE          2
│   └── NoInverseError    a rule of a key map that can't be undone                E-INVERSE        2
├── NotFoundError         a folder, file, repo, revision or tensor does not exist E-NOT-FOUND      2
│   └── AccessError       it exists, and can't be read: token, permission, limit E-ACCESS          2
├── NoSpaceError          the disk is full, or would be                           E-SPACE          2
├── MemoryLimitError      the load takes more memory than it was allowed          E-MEMORY         2
├── UnsupportedError      known by name, and not done by this version             E-UNSUPPORTED    2
├── MismatchError         checkpoint (or adapter) and model disagree              E-MISMATCH       1
├── RemoteCodeError       a repo's own code failed, or needs what is missing      E-CODE           1
├── RanksError            ranks that load or save together did not end together   E-RANKS          3
├── CorruptError          bytes are not what they claim to be                     E-CORRUPT        4
└── UnsafeError           it would run or reach something that was not allowed    E-UNSAFE         4
    └── UntrustedCodeError  a repo's code would run without the user's consent    E-UNTRUSTED      4

The code is that of the class, unless the place that raises knows a more specific one: `docs/doctor.md` lists them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.errors.wording import Cures as Cures
from shardload.errors.wording import OfReport as OfReport
from shardload.errors.wording import Wording as Wording
from shardload.errors.wording import in_python
from shardload.errors.wording import joined as joined
from shardload.errors.wording import keyword as keyword
from shardload.errors.wording import keywords_of as keywords_of
from shardload.errors.wording import plain_keywords as plain_keywords
from shardload.errors.wording import printable as printable
from shardload.errors.wording import said as said
from shardload.errors.wording import without as without

if TYPE_CHECKING:
    from shardload.errors.wording import Words


class ShardloadError(Exception):
    """What went wrong, where, and what to do about it.

        >>> import shardload
        >>> try:
        ...     shardload.KeyMap().rename("h.{}.w", "w")
        ... except shardload.ShardloadError as error:
        ...     print(error.code, error.where, sep=": ")
        E-USAGE: 'h.{}.w' -> 'w'

    `code` is stable ("E-LFS"): the class's own, or a more specific one that was given. `what` is one sentence;
    `where` names the file, key or argument; `cure` says what to do. The three are texts; one that names keyword
    arguments is a `Wording`. `str()` shows all three, a line each, with control and bidi characters escaped:
    names in files are untrusted.
    """

    code = "E-ERROR"
    exit_code = 2
    rank: int | None = None

    def __init__(
        self, what: str, *, where: str | None = None, cure: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.cure = cure
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        """Return the message: what, then `where:` and `cure:` lines for the parts that are known."""
        return self.said(in_python)

    def said(self, words: Words) -> str:
        """Return the message with its keyword arguments in a front end's words.

        >>> import shardload
        >>> error = shardload.UsageError("no", cure=shardload.errors.Wording("pass {copy}", copy=True))
        >>> print(error.said(lambda name, value: f"--{name}"))
        no
          cure:  pass --copy
        """
        lines = [said(self.what, words)]
        if self.where:
            lines.append(f"  where: {said(self.where, words)}")
        if self.cure:
            lines.append(f"  cure:  {said(self.cure, words)}")
        return "\n".join(printable(line) for text in lines for line in text.split("\n"))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with the keyword parts, the code and the report: errors cross process pools."""
        return (_rebuild, (type(self), self.what, self.where, self.cure), vars(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the error as JSON data: kind, code, what, where, cure, and the keywords that the cure names.

        A keyword whose value the caller chooses is None.

        >>> import shardload
        >>> shardload.NotFoundError("the folder is empty", where="tiny").to_dict()["code"]
        'E-NOT-FOUND'
        """
        return {
            "kind": type(self).__name__,
            "code": self.code,
            "what": self.what,
            "where": self.where,
            "cure": self.cure,
            "keywords": plain_keywords(self.cure),
        }


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

    code = "E-USAGE"


class NoInverseError(UsageError):
    """A rule of a key map can't be undone, or not with what is known of it.

    >>> import shardload
    >>> shardload.KeyMap().drop("*.inv_freq").invert()
    Traceback (most recent call last):
    shardload.errors.NoInverseError: a drop has no inverse
      where: drop '*.inv_freq'
    """

    code = "E-INVERSE"


class NotFoundError(ShardloadError):
    """A folder, file, repo, revision or tensor does not exist.

    >>> import torch, shardload
    >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
    >>> shardload.open_checkpoint("tiny").read("wieght")
    Traceback (most recent call last):
    shardload.errors.NotFoundError: the checkpoint has no tensor 'wieght'
      where: tiny
      cure:  the nearest names: 'weight'
    """

    code = "E-NOT-FOUND"


class AccessError(NotFoundError):
    """It exists, and can't be read: not with this token, by this user, or with so many files open.

    >>> import shardload
    >>> issubclass(shardload.AccessError, shardload.NotFoundError)
    True
    """

    code = "E-ACCESS"


class NoSpaceError(ShardloadError):
    """The disk is full, or would be: raised before anything is written where that can be known.

    >>> import shardload
    >>> shardload.NoSpaceError("30 GB are wanted, and 2 GB are free", where="/models").exit_code
    2
    """

    code = "E-SPACE"


class MemoryLimitError(ShardloadError):
    """The load would take more anonymous memory than `max_memory`: both figures, raised before a weight is read.

    >>> import torch, shardload
    >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
    >>> shardload.fill(torch.nn.Linear(4, 2), shardload.open_checkpoint("tiny"), max_memory=1000)
    Traceback (most recent call last):
    shardload.errors.MemoryLimitError: the load takes ...
    """

    code = "E-MEMORY"


class UnsupportedError(ShardloadError):
    """The thing is known by name, and this version does not do it.

    >>> import torch, shardload
    >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
    >>> shardload.from_pretrained("tiny", model_class=torch.nn.Linear, gguf_file="x.gguf")
    Traceback (most recent call last):
    shardload.errors.UnsupportedError: from_pretrained does not do gguf_file= in this version
      ...
    """

    code = "E-UNSUPPORTED"


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

    `report` is the `Report` (or `AdapterReport`) with every fault in it, or None. `code` is that of the first finding
    of the diagnosis, where there is one.
    """

    code = "E-MISMATCH"
    exit_code = 1
    report: Any = None


class RemoteCodeError(ShardloadError):
    """A repo's own code failed while it was imported or constructed, or needs what is missing.

    >>> from pathlib import Path
    >>> import shardload
    >>> size = Path("config.json").write_text('{"auto_map": {"AutoModel": "net.Net"}}')
    >>> size = Path("net.py").write_text("import a_package_that_is_not_installed")
    >>> shardload.resolve_class(".", trust_remote_code=True)
    Traceback (most recent call last):
    shardload.errors.RemoteCodeError: ...
    """

    code = "E-CODE"
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

    code = "E-CORRUPT"
    exit_code = 4
    report: Any = None


class RanksError(ShardloadError):
    """A rank that loads or saves together with others ended otherwise than they did, or did not come in time.

    >>> import shardload
    >>> str(shardload.RanksError("rank 3 did not come within 60 seconds"))
    'rank 3 did not come within 60 seconds'

    An error that shardload raises on one rank is raised on the others as the same kind of error, with the number of
    that rank (`error.rank`).
    """

    code = "E-RANKS"
    exit_code = 3


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

    code = "E-UNSAFE"
    exit_code = 4


class UntrustedCodeError(UnsafeError):
    """Code of a repo would have to run, and these bytes are not trusted.

        >>> from pathlib import Path
        >>> import shardload
        >>> size = Path("config.json").write_text('{"auto_map": {"AutoModel": "net.Net"}}')
        >>> size = Path("net.py").write_text("class Net: ...")
        >>> shardload.resolve_class(".")
        Traceback (most recent call last):
        shardload.errors.UntrustedCodeError: ...

    `changes` are the files that differ from what a lock file approves (`FileChange`, with the lines that are new).
    """

    code = "E-UNTRUSTED"
    changes: tuple[Any, ...] = ()
