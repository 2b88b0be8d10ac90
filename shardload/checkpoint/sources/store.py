"""A checkpoint in an object store, or on a plain web server: read by obstore, straight into memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shardload.checkpoint.sources.blocks import BlockReader
from shardload.checkpoint.sources.copies import Copies
from shardload.checkpoint.sources.names import check_name, fault_of, is_hidden, suggest
from shardload.checkpoint.sources.redirects import require_no_redirect
from shardload.checkpoint.sources.store_address import StoreAddress
from shardload.checkpoint.sources.store_errors import changed, from_store, is_cut, is_of_store
from shardload.errors import AccessError, CorruptError, NotFoundError, UsageError, Wording, keyword

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from shardload.checkpoint.sources.runs import Part, Run
    from shardload.where import Where

_CHUNK = 2**20  # bytes that obstore hands over at once
_CUTS = 3  # bodies that are cut one after another before a chunk is complete: without an ETag obstore gives up at one
_USUAL_NAMES = (
    *("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"),
    *(
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "adapter_config.json",
        "adapter_model.safetensors",
    ),
    *(
        "adapter_model.bin",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
    ),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja"),
    *("preprocessor_config.json", "processor_config.json"),
)
"""What is asked for on a web server, which lists nothing."""


@dataclass
class Version:
    """The size of a file in bytes, and what names the version that is read; None until a first answer does.

    That is the ETag, or when it was last modified, from a server that has no ETags.
    """

    size: int
    etag: str | None = None
    modified: datetime | None = None
    is_checked: bool = False

    def takes(self, meta: Mapping[str, Any]) -> bool:
        """Whether an answer is of this version, which the first answer names."""
        etag, modified = meta.get("e_tag"), meta.get("last_modified")
        self.modified = self.modified or modified
        same = modified == self.modified if self.etag is None else etag == self.etag
        self.etag = self.etag or etag
        return same and meta["size"] == self.size


class StoreReader(BlockReader):
    """Reads parts of one version of a file. Raises CorruptError when another one takes its place."""

    def __init__(self, store: Any, root: str, path: str, version: Version) -> None:
        super().__init__(version.size)
        self._store, self._root, self._path, self._version = store, root, path, version

    def _fetch(self, run: Run) -> None:
        """Fetch the bytes of a run. obstore retries a request; what a cut connection left is asked for again."""
        if not self._version.is_checked:
            require_no_redirect(self._store, self._root, self._path)
            self._version.is_checked = True
        failures = 0
        while run.left:
            before = run.at
            try:
                self._request(run)
            except BaseException as error:
                if not is_of_store(error):
                    raise
                fault = (
                    error if isinstance(error, CorruptError) else from_store(error, self._root, self._path)
                )
                failures = failures + 1 if run.at == before else 0
                if isinstance(fault, CorruptError) or failures > (_CUTS if is_cut(error) else 0):
                    raise fault from None

    def _request(self, run: Run) -> None:
        import obstore

        version = self._version
        options: dict[str, Any] = {"range": (run.at, run.stop)}
        if version.etag is not None and not version.etag.startswith("W/"):  # a weak one never matches
            options["if_match"] = version.etag
        result = obstore.get(self._store, self._path, options=options)
        self._check(result, run)
        for piece in result.stream(_CHUNK):
            run.take(piece)
        if run.left and not run.at - options["range"][0]:
            raise self._corrupt("sends nothing")

    def _check(self, result: Any, run: Run) -> None:
        start, stop = result.range
        if not self._version.takes(result.meta):
            raise changed(self._root, self._path)
        if (start, stop) != (run.at, run.stop):
            raise self._corrupt(
                f"answered a request for the bytes {run.at} to {run.stop} with {start} to {stop}"
            )

    def _corrupt(self, what: str) -> CorruptError:
        return CorruptError(
            f"the server of {self._path!r} {what}",
            where=f"{self._root}/{self._path}",
            cure="copy the checkpoint, and load that",
        )


class StoreFile:
    """One file of a store. Nothing of it comes onto this disk, unless its path is asked for and it is a small one."""

    is_remote: Literal[True] = True
    is_streamed: Literal[True] = True

    def __init__(self, name: str, path: str, version: Version, source: StoreSource) -> None:
        self.name = name
        self._path, self._version, self._source = path, version, source
        self._reader = StoreReader(source.store, source.root, path, version)

    @property
    def size(self) -> int:
        """Size in bytes, as the store lists it."""
        return self._version.size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; fewer only at its end. Raises typed errors."""
        return self._reader.read_at(offset, length)

    def read_into(self, offset: int, memory: memoryview) -> None:
        """Fill memory with the bytes from `offset` on, by one request."""
        self._reader.read_into(offset, memory)

    def read_many(self, parts: Iterable[Part]) -> None:
        """Fill each part, (offset, memory), on several connections."""
        self._reader.read_many(parts)

    def local_path(self) -> Path:
        """Return the path of a copy that this process keeps until it ends; UnsupportedError for a large file."""
        return self._source.copies.of(self)

    def close(self) -> None:
        """Do nothing: no connection belongs to a file."""

    def __repr__(self) -> str:
        return f"StoreFile({self._path!r} of {self._source.root})"


class StoreSource:
    """The files below an address. `open_store` makes it; a web server's are those of the usual names."""

    is_local: Literal[False] = False
    is_streamed: Literal[True] = True
    revision: None = None

    def __init__(self, store: Any, root: str, versions: Mapping[str, Version], subfolder: str | None) -> None:
        self.store, self.root, self.label = store, root, root
        self._versions = dict(versions)
        self._prefix = f"{subfolder}/" if subfolder else ""
        self.copies = Copies(root)
        self.warnings = [
            f"the store lists the name {name!r}, which {fault_of(name)}; it is left out"
            for name in versions
            if fault_of(name)
        ]

    def names(self) -> Sequence[str]:
        """Return the names of all files, sorted; on a web server, of those that were asked for and are there."""
        start = len(self._prefix)
        return sorted(
            name[start:]
            for name in self._versions
            if name.startswith(self._prefix) and not is_hidden(name) and not fault_of(name)
        )

    def open(self, name: str) -> StoreFile:
        """Return the file called `name`. Raises NotFoundError and UnsafeError."""
        check_name(name, self.label)
        path = self._prefix + name
        if path not in self._versions and self.root.startswith("http"):
            found = _asked(self.store, self.root, path)
            if found is not None:
                self._versions[path] = found
        if path not in self._versions:
            raise NotFoundError(
                f"the file {name!r} is not in the store", where=self.label, cure=suggest(name, self.names())
            )
        return StoreFile(name, path, self._versions[path], self)

    def digest(self, name: str) -> None:
        """Return None: a store's ETag is no hash of the bytes that holds for all stores."""
        check_name(name, self.label)

    def __repr__(self) -> str:
        return f"StoreSource({self.label!r})"


def open_store(place: Where, subfolder: str | None) -> tuple[StoreSource, str | None]:
    """Return the files at the address that a place names, and the one file that it names, if it does.

    One listing says what is there; a web server is asked for the usual names. Raises UsageError, UnsupportedError,
    NotFoundError and AccessError; none of them, and no report, holds a credential.
    """
    address = StoreAddress.of(str(place.name))
    for name, given in (("revision", place.revision), ("subfolder", address.named and subfolder)):
        if given is not None:
            raise UsageError(
                Wording(
                    "{0} has no meaning for {1!r}, which is in a store", keyword(name, given), str(place.name)
                ),
                where=address.root,
                cure=Wording("leave {0} out", keyword(name, given)),
            )
    if place.local_files_only:
        raise NotFoundError(
            "nothing of a store is kept on this disk, and the network is not to be used",
            where=address.root,
            cure=Wording("leave {local_files_only} out", local_files_only=True),
        )
    if subfolder:
        check_name(subfolder, address.root)
    store = address.connect(place.storage_options)
    if address.is_web:
        names = ["config.json", address.named] if address.named else _USUAL_NAMES
        versions = _probed(
            store, address.root, [f"{subfolder}/{name}" if subfolder else name for name in names]
        )
    else:
        versions = _listed(store, address.root)
    if not versions:
        raise NotFoundError(
            f"there is no file at {address.root}",
            where=address.root,
            cure="name the file: a web server lists none"
            if address.is_web
            else "check the bucket and the prefix",
        )
    return StoreSource(store, address.root, versions, subfolder), address.named


def _listed(store: Any, root: str) -> dict[str, Version]:
    import obstore

    try:
        return {meta["path"]: Version(meta["size"]) for page in obstore.list(store) for meta in page}
    except BaseException as error:
        if not is_of_store(error):
            raise
        fault = from_store(error, root)
    raise fault


def _probed(store: Any, root: str, names: Sequence[str]) -> dict[str, Version]:
    """Ask a web server for files by name. One that may not be seen counts as absent where another one is there."""
    refused: list[AccessError] = []

    def ask(name: str) -> tuple[str, Version | None]:
        try:
            return name, _asked(store, root, name)
        except AccessError as error:
            refused.append(error)
            return name, None

    with ThreadPoolExecutor(8) as pool:
        found = {name: version for name, version in pool.map(ask, names) if version is not None}
    if refused and not found:
        raise refused[0]
    return found


def _asked(store: Any, root: str, path: str) -> Version | None:
    """Return what a web server says of a file, or None where it has none."""
    import obstore

    require_no_redirect(store, root, path)
    try:
        meta = obstore.head(store, path)
    except FileNotFoundError:
        return None
    except BaseException as error:
        if not is_of_store(error):
            raise
        fault = from_store(error, root, path)
    else:
        return Version(meta["size"], meta.get("e_tag"), meta.get("last_modified"), is_checked=True)
    raise fault
