"""A checkpoint in a folder on this disk."""

from __future__ import annotations

import io
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shardload._system.file_errors import is_absent, unreadable
from shardload._system.file_identity import file_identity
from shardload.checkpoint.sources.digest import Digest
from shardload.checkpoint.sources.names import check_name, fault_of, is_commit, suggest
from shardload.checkpoint.sources.runs import read_parts
from shardload.errors import CorruptError, Cures, NotFoundError, UnsafeError, Wording

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from shardload.checkpoint.sources.runs import Part

_XET_HASH = re.compile(r"[0-9a-f]{64}")


class LocalFile:
    """One file on this disk. No descriptor stays open between two reads: a checkpoint may have hundreds of files.

    `path` is shown to people and handed out by `local_path()`; `real` is where the bytes lie, with every link
    followed. Raises NotFoundError, AccessError or UnsafeError when it can't be opened as a regular file.
    """

    __slots__ = ("_identity", "_path", "_real", "name")

    def __init__(self, name: str, path: Path, real: Path | None = None) -> None:
        self.name = name
        self._path = path
        self._real = path.resolve() if real is None else real
        with _open_regular(self._real, shown=path) as file:
            self._identity = file_identity(file.fileno())

    @property
    def size(self) -> int:
        """Size in bytes when the file was first opened."""
        return self._identity[1]

    @property
    def is_remote(self) -> bool:
        """Always False: the file is on this disk."""
        return False

    @property
    def is_streamed(self) -> bool:
        """Always False: it can be mapped."""
        return False

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; fewer only at its end. Raises CorruptError."""
        if offset < 0 or length < 0:
            raise ValueError(f"offset and length must not be negative, got {offset} and {length}")
        wanted = max(0, min(length, self.size - offset))
        pieces: list[bytes] = []
        with self._opened() as file:
            # One pread stops at 2 GiB, and may stop earlier.
            while wanted > 0 and (piece := self._read(file, wanted, offset)):
                pieces.append(piece)
                offset += len(piece)
                wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_into(self, offset: int, memory: memoryview) -> None:
        """Fill memory with the bytes from `offset` on. Raises CorruptError where the file ends inside it."""
        self.read_many([(offset, memory)])

    def read_many(self, parts: Iterable[Part]) -> None:
        """Fill each part, (offset, memory), with one read. Raises CorruptError where the file ends inside one."""
        with self._opened() as file:
            try:
                end = read_parts(file.fileno(), parts)
            except OSError as error:
                raise self._unread(error) from error
        if end is not None:
            raise CorruptError(
                f"{self.name!r} ends at byte {end:,}, and more are wanted",
                where=str(self._path),
                cure="fetch the file again",
            )

    def _opened(self) -> io.FileIO:
        file = _open_regular(self._real, shown=self._path)
        if file_identity(file.fileno()) == self._identity:
            return file
        file.close()
        raise CorruptError(
            f"{self.name!r} was changed since it was opened",
            where=str(self._path),
            cure="open it again when nothing writes to it",
        )

    def _read(self, file: io.FileIO, length: int, offset: int) -> bytes:
        try:
            return os.pread(file.fileno(), length, offset)
        except OSError as error:
            raise self._unread(error) from error

    def _unread(self, error: OSError) -> CorruptError:
        return CorruptError(
            f"reading {self.name!r} failed: {error.strerror or error}",
            where=str(self._path),
            cure="check the disk, or copy the file again",
        )

    def local_path(self) -> Path:
        """Return the file's path; nothing is copied."""
        return self._path

    def close(self) -> None:
        """Do nothing: no descriptor is open."""

    def __repr__(self) -> str:
        return f"LocalFile({str(self._path)!r})"


def mode_of(path: Path) -> int:
    """Return the `st_mode` of a path, links followed, or 0 when nothing is there. Raises AccessError."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if is_absent(error):
            return 0
        raise unreadable(path, error) from error


def expand(path: str | os.PathLike[str]) -> Path:
    """Return the path with a leading `~` replaced by the home folder, where that user exists."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _open_regular(path: Path, *, shown: Path) -> io.FileIO:
    # Without O_NONBLOCK a FIFO would block here; a regular file is not affected. `path` has no links left in
    # it, so a link found now was made after the check.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        # By functions of C alone, until an object owns the descriptor: Ctrl-C leaves none behind.
        file = next(map(io.FileIO, map(os.open, (path,), (flags,))))
    except OSError as error:
        raise unreadable(shown, error) from error
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISREG(mode):
        return file
    file.close()
    if stat.S_ISDIR(mode):
        raise NotFoundError(f"{shown.name!r} is a folder, not a file", where=str(shown))
    raise UnsafeError(
        f"{shown.name!r} is not a regular file, so it is not read",
        where=str(shown),
        cure="a checkpoint is made of regular files; remove the pipe, socket or device",
    )


class FolderSource:
    """A folder on this disk as a source of checkpoint files.

    `subfolder` narrows it to a folder below `root`. Files may be links, as long as they end below `root`; in
    a snapshot of the Hugging Face cache they may also end in that cache's own blobs; `allow_links` lets them end
    anywhere. `root` is the real folder, links followed. Raises NotFoundError when the folder is not there.
    """

    revision: None = None
    is_local: Literal[True] = True
    is_streamed: Literal[False] = False

    def __init__(
        self, root: str | os.PathLike[str], subfolder: str | None = None, *, allow_links: bool = False
    ) -> None:
        self.warnings: list[str] = []
        self._allow_links = allow_links
        folder = Path(root)
        if subfolder:
            check_name(subfolder, str(root))
            folder = folder / subfolder
        self.label = str(folder)
        # A later change of the working directory must not change where files are read.
        self._shown = folder.absolute()
        if not stat.S_ISDIR(mode_of(folder)):
            what = "subfolder" if subfolder else "folder"
            raise NotFoundError(
                f"the {what} {subfolder or self.label!r} is not there",
                where=self.label,
                cure="check the path; a Hub repo is written org/name",
            )
        self._roots = _allowed_roots(Path(root))
        self.root = self._roots[0]
        if not self._contains(self._shown.resolve()):
            raise self._escape(subfolder or "")

    def names(self) -> Sequence[str]:
        """Return the names of all files below the folder, sorted; hidden files and folders are left out.

        So are folders in it that this user may not list. Raises AccessError where the folder itself can't be listed.
        """
        return sorted(_walk(self._shown, ""))

    def open(self, name: str) -> LocalFile:
        """Open the file called `name`, a relative posix path. Raises NotFoundError, UnsafeError or CorruptError."""
        check_name(name, self.label)
        path = self._shown / name
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:  # Python before 3.13 raises RuntimeError for a loop of links
            if isinstance(error, OSError) and not is_absent(error):
                raise unreadable(path, error) from error
            raise NotFoundError(
                f"the file {name!r} is not there", where=self.label, cure=suggest(name, self.names())
            ) from error
        if not self._contains(real):
            raise self._escape(name)
        file = LocalFile(name, path, real)
        if len(self._roots) > 1:
            self._require_blob(file, path)
        return file

    def digest(self, name: str) -> Digest | None:
        """Return the hash by which the Hub's cache names the file's blob; None for a file of any other folder."""
        check_name(name, self.label)
        path = self._shown / name
        if len(self._roots) == 1 or not path.is_symlink():
            return None
        # Only where this link leads: the store that repos share names its blobs in another way.
        blob = Path(os.path.normpath(path.parent.resolve() / path.readlink()))
        return Digest.of_blob_name(blob.name, "the Hub's cache") if blob.parent == self._roots[1] else None

    def __repr__(self) -> str:
        return f"FolderSource({self.label!r})"

    def _contains(self, real: Path) -> bool:
        root, *stores = self._roots
        if self._allow_links or real.is_relative_to(root):
            return True
        if not stores:
            return False
        own, shared = stores
        # The store that repos share is addressed by content: blobs/<2 hex>/<64 hex>.
        return real.parent == own or (real.parent.parent == shared and bool(_XET_HASH.fullmatch(real.name)))

    def _require_blob(self, file: LocalFile, path: Path) -> None:
        """Raise CorruptError for a link of a snapshot that leads to another content than the cache's listing says."""
        from shardload.checkpoint.sources.cached_blob import cached_digest, require_blob

        snapshot, blobs, _ = self._roots
        parent = path.parent.resolve()
        if parent.is_relative_to(snapshot):
            name = (parent / path.name).relative_to(snapshot).as_posix()
            require_blob(file, self.digest(file.name), cached_digest(blobs.parent, snapshot.name, name))

    def _escape(self, name: str) -> UnsafeError:
        return UnsafeError(
            f"{name!r} is a link that leads out of the folder, so it is not followed",
            where=self.label,
            cure=Cures(
                "copy the file into the folder",
                "pass the folder or file that the link leads to",
                Wording("pass {allow_links} if you made the link", allow_links=True),
            ),
        )


def _allowed_roots(root: Path) -> tuple[Path, ...]:
    """Return the real root, then (in a Hub cache) the repo's own blobs and the blobs that repos share."""
    real = root.resolve()
    for folder in (real, *real.parents):
        repo = folder.parent.parent
        in_snapshots = is_commit(folder.name) and folder.parent.name == "snapshots"
        if in_snapshots and repo.name.startswith("models--"):
            return (folder, (repo / "blobs").resolve(), (repo.parent / "blobs").resolve())
    return (real,)


def _walk(folder: str | Path, prefix: str) -> Iterator[str]:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        # A folder such as lost+found belongs to no checkpoint; one that was removed meanwhile has no files.
        if prefix and (isinstance(error, PermissionError) or is_absent(error)):
            return
        raise unreadable(folder, error) from error
    for entry in entries:
        # A name that `open` would refuse, such as one with a backslash, is left out.
        if entry.name.startswith(".") or fault_of(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, f"{prefix}{entry.name}/")
        elif _is_file(entry):
            yield prefix + entry.name


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError as error:
        return isinstance(error, PermissionError)  # `open` says so; the other error is a loop of links
