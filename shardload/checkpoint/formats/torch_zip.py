"""The format that torch.save has written since torch 1.6: a zip archive of a pickle and raw storages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload._system.file_kind import REFETCH, RESAVE
from shardload._system.gc_freeze import gc_frozen
from shardload.checkpoint.formats.pickle_machine import MAX_PICKLE_BYTES, EndOfDataError
from shardload.checkpoint.formats.state_dict import Block, header_of
from shardload.checkpoint.formats.text import quote
from shardload.checkpoint.formats.torch_pickle import TorchPickle
from shardload.checkpoint.formats.whole_module import load_beside_modules
from shardload.checkpoint.formats.zip_directory import ZipDirectory
from shardload.errors import CorruptError, UnsupportedError
from shardload.tensor_ref import DTYPE_BITS

if TYPE_CHECKING:
    from shardload.checkpoint.formats.format import Header
    from shardload.checkpoint.formats.torch_globals import Storage
    from shardload.checkpoint.formats.zip_directory import Entry
    from shardload.checkpoint.sources.source import SourceFile

_NOTES = (
    "byteorder",
    "version",
    ".data/version",
    ".format_version",
    ".storage_alignment",
    ".data/serialization_id",
)
_LONGEST_NOTE = 256
_OLDEST, _NEWEST = 1, 10  # the format versions that torch's own reader accepts

# Other zips, by the end of an entry's name.
_OTHERS = (
    (".npy", "a NumPy .npz archive"),
    ("metadata.json", "a Keras .keras archive"),
    ("[Content_Types].xml", "an office document"),
    ("META-INF/MANIFEST.MF", "a Java archive"),
    (".safetensors", "a zip of checkpoint files"),
    (".bin", "a zip of checkpoint files"),
)


class TorchZipFormat:
    """Reads the header of a `.bin`, `.pt` or `.pth` file of torch 1.6 or newer.

    A remote file takes three requests: for its first bytes, for its tail with the directory, and for the pickle
    with the small entries around it. torch.load is never called, and the pickle runs nothing: see torch_pickle.
    """

    name = "torch zip"

    def matches(self, head: bytes) -> bool:
        """Whether `head` begins a zip archive; read_header checks what is in it."""
        return head.startswith(b"PK\3\4")

    @gc_frozen
    def read_header(self, file: SourceFile, state_dict: str | None = None) -> Header:
        """Read the directory and the pickle. Raises CorruptError, UnsupportedError or UnsafeError."""
        top, blocks = read_archive(file, ZipDirectory(file), state_dict)
        return header_of(top, file.name, lambda storage: blocks[storage.key], state_dict)


def read_archive(
    file: SourceFile, archive: ZipDirectory, wanted: str | None = None
) -> tuple[Any, dict[str, Block]]:
    """Return the top object of an archive's pickle, and where each of its storages lies in the file."""
    root = _root(archive, file)
    pickle = archive.entries[f"{root}/data.pkl"]
    if pickle.size > MAX_PICKLE_BYTES:
        raise UnsupportedError(
            f"the checkpoint's pickle has {pickle.size:,} bytes, the limit is {MAX_PICKLE_BYTES:,}",
            where=file.name,
            cure=f"split it into shards, or {RESAVE}",
            code="E-FORMAT",
        )
    notes = [archive.entries[name] for note in _NOTES if (name := f"{root}/{note}") in archive.entries]
    for entry in notes:
        if entry.size > _LONGEST_NOTE:
            raise _corrupt(f"{quote(entry.name)} of {entry.size:,} bytes", file)
    archive.prefetch([pickle, *notes])
    _check_notes({entry.name.partition("/")[2]: archive.read(entry) for entry in notes}, file)
    return _contents(archive, root, file, archive.read(pickle), wanted)


def _root(archive: ZipDirectory, file: SourceFile) -> str:
    """Return the folder of all entries: that of the first entry, as in torch's own reader."""
    root = next(iter(archive.entries), "").partition("/")[0]
    if any(name.startswith(f"{root}/code/") or name == f"{root}/constants.pkl" for name in archive.entries):
        raise UnsupportedError(
            f"{file.name} is a TorchScript archive: it holds code",
            where=file.name,
            cure="save model.state_dict() of the original model",
            code="E-FORMAT",
        )
    if f"{root}/data.pkl" in archive.entries:
        for name in archive.entries:
            if not name.startswith(f"{root}/"):
                raise _corrupt(f"{quote(name)} lies beside {quote(root)}", file)
        return root
    what = next(
        (what for ending, what in _OTHERS if any(name.endswith(ending) for name in archive.entries)),
        "a zip archive that torch.save did not write",
    )
    names = ", ".join(quote(name) for name in list(archive.entries)[:3])
    raise UnsupportedError(
        f"{file.name} is {what}",
        where=f"{file.name}: holds {names}" if names else file.name,
        cure="unpack it and pass the checkpoint inside, or convert it to safetensors with the tool that wrote it",
        code="E-FORMAT",
    )


def _corrupt(what: str, file: SourceFile) -> CorruptError:
    return CorruptError(f"the torch archive is damaged: {what}", where=file.name, cure=REFETCH)


def _check_notes(notes: dict[str, bytes], file: SourceFile) -> None:
    """Check the small entries in which torch records how the archive was made; its own reader reads them too."""
    order = notes.get("byteorder", b"little")
    if order == b"big":
        raise UnsupportedError(
            "the checkpoint was written on a big-endian machine",
            where=file.name,
            cure=f"there, {RESAVE}",
            code="E-FORMAT",
        )
    if order != b"little":
        raise _corrupt(f"the byte order {order!r} is unknown", file)
    version = notes.get(".data/version", notes.get("version", b"")).strip()
    if not version.isdigit() or not _OLDEST <= int(version) <= _NEWEST:
        raise _corrupt(f"the format version {version!r} is unknown", file)
    alignment = notes.get(".storage_alignment", b"64")
    if not alignment.isdigit():
        raise _corrupt(f"the storage alignment {alignment!r} is no number", file)
    if not notes.get(".data/serialization_id", b"0").isdigit():
        raise _corrupt("the serialization id is no number", file)


def _contents(
    archive: ZipDirectory, root: str, file: SourceFile, pickle: bytes, wanted: str | None
) -> tuple[Any, dict[str, Block]]:
    def opened(aside: bool) -> TorchPickle:
        return TorchPickle(pickle, file.name, modules_aside=aside)

    try:
        reader, top = load_beside_modules(opened, wanted)
    except EndOfDataError:
        raise CorruptError(
            "the checkpoint's pickle is damaged: it ends in the middle", where=file.name, cure=REFETCH
        ) from None
    if reader.position != len(pickle):
        raise CorruptError("bytes follow the checkpoint's pickle", where=file.name, cure=REFETCH)
    entries = {key: _entry_of(archive, root, storage, file) for key, storage in reader.storages().items()}
    starts = archive.starts(entries.values())
    return top, {key: Block(starts[entry.name], entry.size) for key, entry in entries.items()}


def _entry_of(archive: ZipDirectory, root: str, storage: Storage, file: SourceFile) -> Entry:
    name = f"{root}/data/{storage.key}"
    entry = archive.entries.get(name)
    if entry is None:
        raise CorruptError(
            f"the storage {quote(storage.key)} is not in the archive",
            where=f"{file.name}: {quote(name)}",
            cure=REFETCH,
        )
    # A storage that is a view of bytes may end inside an element.
    item = DTYPE_BITS[storage.code] // 8 if storage.code else None
    if item is not None and not storage.numel * item <= entry.size < (storage.numel + 1) * item:
        raise CorruptError(
            f"the storage {quote(storage.key)} should have {storage.numel:,} elements of {storage.code}, "
            f"the archive has {entry.size:,} bytes of it",
            where=f"{file.name}: {quote(name)}",
            cure=REFETCH,
        )
    return entry
