"""What every source of checkpoint files can do. A new source is one new file beside this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from shardload.checkpoint.sources.digest import Digest
    from shardload.checkpoint.sources.runs import Part


class SourceFile(Protocol):
    """One file of a source, any part of which can be read without the rest."""

    @property
    def name(self) -> str:
        """Name relative to the source's root, with `/` between parts."""

    @property
    def size(self) -> int:
        """Size in bytes."""

    @property
    def is_remote(self) -> bool:
        """Whether each read is a request over the network."""

    @property
    def is_streamed(self) -> bool:
        """Whether weights are read from it straight into memory, as the file is not to come onto this disk."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; fewer only at the end of the file."""

    def read_into(self, offset: int, memory: memoryview) -> None:
        """Fill memory with the bytes from `offset` on. Raises CorruptError where the file ends inside it."""

    def read_many(self, parts: Iterable[Part]) -> None:
        """Fill each part, (offset, memory), in any order; over a network by few requests, several at a time."""

    def local_path(self) -> Path:
        """Return the file's path on this disk, after downloading it where the source is remote."""


class Source(Protocol):
    """The files of one repo or folder, at one revision."""

    @property
    def label(self) -> str:
        """Its name in messages: the folder, or `org/name@commit`."""

    @property
    def revision(self) -> str | None:
        """The full commit on the Hub; None for a local folder, and for a store, which keeps no versions."""

    @property
    def is_local(self) -> bool:
        """Whether this is the user's own folder: its code needs trust, but no commit."""

    @property
    def is_streamed(self) -> bool:
        """Whether weights are read from its files straight into memory: none is put onto this disk."""

    @property
    def warnings(self) -> Sequence[str]:
        """Sentences about how the source was found, such as a fall-back to the cache; usually empty."""

    def names(self) -> Sequence[str]:
        """Return the names of all files, sorted, relative to the root (and to `subfolder`)."""

    def digest(self, name: str) -> Digest | None:
        """Return the hash that the file's bytes must have, where the source knows it without reading them."""

    def open(self, name: str) -> SourceFile:
        """Return the file called `name`.

        Raises NotFoundError when it is not there, UnsafeError when the name leaves the root.
        """
