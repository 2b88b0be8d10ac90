"""Checkpoint: everything that a sharded checkpoint's headers say, before a weight is read."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from shardload._system.file_identity import file_identity
from shardload._system.file_kind import HEAD_BYTES
from shardload._system.ranks import has_ranks
from shardload.checkpoint.formats import FORMATS
from shardload.checkpoint.formats.gguf_parts import joined_parts
from shardload.checkpoint.formats.not_a_checkpoint import explain
from shardload.checkpoint.index import DISTRIBUTED, WeightFiles, disagreement, find_weight_files, no_tensors
from shardload.checkpoint.json_file import config_beside
from shardload.checkpoint.sources import find_source
from shardload.checkpoint.stage import Stage
from shardload.checkpoint.unfinished import cure_of
from shardload.dequantise.signatures import CONFIG_FIELDS, FP8
from shardload.dtypes import FLOATS
from shardload.errors import AccessError, NotFoundError
from shardload.keys import collapse
from shardload.keywords import entry_point, place_of
from shardload.tensor_ref import TensorRef
from shardload.where import Where

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterable, Mapping, Sequence

    import torch
    from typing_extensions import Unpack

    from shardload._system.file_identity import FileIdentity
    from shardload.checkpoint.formats.format import Format, Header
    from shardload.checkpoint.shard import AnyShard
    from shardload.checkpoint.sources.source import Source, SourceFile
    from shardload.keymap import Derived, KeyMap, Names
    from shardload.keywords import WhereKeywords
    from shardload.tensor_ref import Region
    from shardload.where import WhereLike

_PACKED = FP8 | {"I32", "I8", "U8", "F8_E8M0", "F4"}


@dataclass(frozen=True)
class ShardInfo:
    """One weight file: its size on disk, and the number and bytes of the tensors in it."""

    name: str
    size: int
    tensors: int
    nbytes: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's headers: names, shapes, dtypes and places of its tensors; no weight has been read.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> checkpoint = shardload.open_checkpoint("tiny")
        >>> {name: ref.shape for name, ref in checkpoint.tensors.items()}
        {'bias': (2,), 'weight': (2, 4)}
        >>> checkpoint.format, checkpoint.nbytes
        ('safetensors', 40)

    `tensors` maps each key to its TensorRef, in file order; a tensor that a distributed checkpoint holds in several
    pieces is a Joined. `objects` are entries of pickled state dicts that are not tensors. `versions` is the state
    dict's `_metadata`. `config` is config.json, or None. `metadata` is what the safetensors headers hold besides
    tensors. `warnings` are for the user. `identities` show whether a local file was replaced since. `named` is the
    file that the caller named, None for a folder or a repo. `only`: patterns of a part. After `dequantised`,
    `packing` says how weights are packed whose plain tensors are in `tensors`. `given` is how the caller named it.
    """

    source: Source
    format: str
    tensors: Mapping[str, Derived]
    shards: tuple[ShardInfo, ...]
    config: dict[str, Any] | None = None
    index: str | None = None
    objects: Mapping[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    identities: Mapping[str, FileIdentity] = field(default_factory=dict, repr=False)
    named: str | None = None
    only: tuple[str, ...] = ()
    packing: str = ""
    given: Where = field(default=Where(""), repr=False, compare=False)
    _mappings: WeakValueDictionary[Any, Any] = field(
        default_factory=WeakValueDictionary, repr=False, compare=False
    )

    @property
    def label(self) -> str:
        """The folder, the named file, or `org/name@commit`, as messages show it."""
        return f"{self.source.label}/{self.named}" if self.named else self.source.label

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def may_be_packed(self) -> bool:
        """Whether dtypes, or a config that names a quantiser, leave room for packed weights."""
        named = self.format == "gguf" or any(name in (self.config or ()) for name in CONFIG_FIELDS)
        return not self.packing and (
            named or not _PACKED.isdisjoint([r.dtype for r in self.tensors.values()])
        )

    @property
    def float_code(self) -> str:
        """The code of the floating dtype that most bytes are stored in ("BF16"); "" where none is F16 to F64.

        >>> import torch, shardload
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4).bfloat16(), torch.nn.LayerNorm(4))
        >>> files = shardload.save(net, "tiny")
        >>> shardload.open_checkpoint("tiny").float_code
        'BF16'
        """
        sizes = dict.fromkeys(FLOATS.values(), 0)
        for ref in self.tensors.values():
            if ref.dtype in sizes:
                sizes[ref.dtype] += ref.nbytes
        most = max(sizes, key=sizes.__getitem__)
        return most if sizes[most] else ""

    def read(self, name: str, region: Region | None = None) -> torch.Tensor:
        """Return a stored tensor, or a region of it, in its stored dtype.

            >>> import torch, shardload
            >>> files = shardload.save(torch.nn.Embedding(8, 4), "tiny")
            >>> checkpoint = shardload.open_checkpoint("tiny")
            >>> checkpoint.read("weight").shape
            torch.Size([8, 4])
            >>> checkpoint.read("weight", (slice(2, 4),)).shape
            torch.Size([2, 4])

        A whole tensor of a local file is a view of the mapped file: what is written to it shows in other views
        of the same tensor, and never in the file. A region (one slice a dimension, forwards) is a copy, and no more
        is read than the rows that hold it; of a Hub repo only those bytes are fetched. Raises NotFoundError for an
        unknown name, with the nearest ones, UsageError for an invalid region, CorruptError for a file that changed.
        """
        from shardload.checkpoint.items import no_tensor
        from shardload.checkpoint.regions import read_region, read_tensor

        ref = self.tensors.get(name)
        if ref is None:
            raise no_tensor([name], self.tensors, where=self.label)
        if not isinstance(ref, TensorRef):
            return self.read_derived(ref) if region is None else read_region(ref, region, self.read_derived)
        return read_tensor(self.source.open(ref.shard), ref, region, partial(self._opened, shared=True))

    def items(
        self,
        names: Iterable[str] | None = None,
        *,
        key_map: KeyMap | Names | str | os.PathLike[str] | None = None,
        copy: bool = False,
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        """Yield (name, tensor) pairs in file order, one shard open at a time.

            >>> import torch, shardload
            >>> files = shardload.save(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU()), "tiny")
            >>> for name, tensor in shardload.open_checkpoint("tiny").items(["0.*"]):
            ...     print(name, tuple(tensor.shape), tensor.dtype)
            0.bias (2,) torch.float32
            0.weight (2, 4) torch.float32

        `names` are exact names or fnmatch patterns on whole names; without them every tensor comes. With a `key_map`
        (a KeyMap, a mapping of names, or the path of a map's JSON file) they are the names that the map gives, and
        its tensors are yielded: one that is joined from several comes when its last part has been read.
        Tensors are in their stored dtype, on the CPU. Those of a local file are views of the mapped file, which take no
        anonymous memory until they are written to; joined ones are copies. With `copy=True` nothing is mapped and
        each tensor has memory of its own. The iterator keeps no tensor that it has yielded. A shard of a Hub repo is
        downloaded when its first tensor is wanted, and a shard of which nothing is wanted is not opened. Entries that
        are not tensors (`objects`) are left out. `close()` of the iterator closes the shard.
        Raises, before anything is read, NotFoundError for names that no tensor has, UnsupportedError for a dtype
        that torch lacks, and UsageError for a map that does not fit; CorruptError for a file that has changed.
        """
        from shardload.checkpoint.items import read_in_order, wanted

        tensors = wanted(self.tensors, key_map, names, where=self.label)
        return read_in_order(
            tensors, [shard.name for shard in self.shards], partial(self._opened, copy=copy, shared=True)
        )

    def read_derived(self, tensor: Derived, *, copy: bool = False) -> torch.Tensor:
        """Return what a key map makes of stored tensors: an entry of `KeyMap.map_headers(checkpoint.tensors).tensors`.

            >>> import torch, shardload
            >>> torch.save({"gate": torch.ones(2), "up": torch.zeros(2)}, "model.bin")
            >>> checkpoint = shardload.open_checkpoint("model.bin")
            >>> mapped = shardload.KeyMap().cat(["gate", "up"], "gate_up").map_headers(checkpoint.tensors)
            >>> checkpoint.read_derived(mapped.tensors["gate_up"])
            tensor([1., 1., 0., 0.])

        A part or a transpose of a local file's tensor is a view of the mapped file; a joined tensor is a copy.
        With `copy=True` nothing is mapped.
        """
        from shardload.keymap.assembly import assemble

        def read(ref: TensorRef) -> torch.Tensor:
            with self._opened(ref.shard, (ref,), copy=copy, shared=True) as shard:
                return shard.tensor(ref)

        return assemble(tensor, read)

    def _opened(
        self, name: str, refs: Iterable[TensorRef] = (), *, copy: bool = False, shared: bool = False
    ) -> AnyShard:
        """Return a shard, to be entered, of which `refs` will be wanted; `shared`: by a mapping that is in use."""
        file, expected = self.source.open(name), self.identities.get(name)
        if file.is_streamed:
            from shardload.checkpoint.streamed_shard import StreamedShard

            return StreamedShard(self.source.open, refs)
        from shardload.checkpoint.shard import Shard

        return Shard(
            file.local_path(), copy=copy, expected=expected, mappings=self._mappings if shared else None
        )


@entry_point
def open_checkpoint(
    where: WhereLike, *, only: Sequence[str] | None = None, **keywords: Unpack[WhereKeywords]
) -> Checkpoint:
    """Open a checkpoint by its headers: a folder, a file, `org/name[@revision]` on the Hub, or `s3://bucket/prefix`.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> shardload.open_checkpoint("tiny").tensors["weight"].shape
        (2, 4)

    Of a Hub repo or a store only headers and small JSON files are fetched; `storage_options` and `disk` are as in
    docs/stores.md. Links out of a folder are followed into the Hub cache's own blobs, and elsewhere with
    `allow_links=True`. `state_dict` names one of several in a training checkpoint ("ema"); `warnings` name the others.
    `only` are patterns of stored names, of a stage of a pipeline, say; a segment "0-13" is a range. Raises
    NotFoundError, CorruptError (no checkpoint, an index and shards that disagree), UnsafeError (a shard outside).
    """
    with _noticed_by_ranks():
        place = place_of(where, keywords)
        source, named = find_source(place)
        files = find_weight_files(source, only=named, variant=place.variant)
        stage = None if only is None else Stage(only)
        return read_checkpoint(source, files, named=named, place=place, stage=stage)


def _noticed_by_ranks() -> Any:
    """Let the other ranks of a process group, where there is one, know of an error that ends the block."""
    if not has_ranks():
        return nullcontext()
    from shardload._system.opening import noticed

    return noticed()


def read_checkpoint(
    source: Source,
    files: WeightFiles,
    *,
    named: str | None = None,
    place: Where = Where(""),  # noqa: B008 - it is frozen
    stage: Stage | None = None,
) -> Checkpoint:
    """Read the headers of the given weight files and check them against their index, both ways.

    `named` is a file that the caller named: a broken config.json beside it is a warning. `stage` is a part to read.
    """
    folder = None
    if files.index == DISTRIBUTED:
        from shardload.checkpoint.formats.dcp import DcpFolder

        folder = DcpFolder(source, DISTRIBUTED, place.state_dict, stage)
        files = replace(files, shards=folder.files)
    elif stage is not None:
        files = stage.files(files)
    shards = _open_shards(source, files)
    # A file on the Hub is named by its commit and can't change.
    identities = {file.name: file_identity(file.local_path()) for file in shards if source.is_local}
    tensors: Mapping[str, Derived]
    if folder is not None:
        names = [folder.format]
        headers, tensors = folder.read(shards)
    else:
        names, headers = _read_headers(shards, place.state_dict, remote=not source.is_local)
        if stage is not None:
            headers = stage.headers(headers, source.label)
        tensors = _merge(source, files, headers)
    metadata = {key: value for header in headers for key, value in header.metadata.items()}
    config, doubts = config_beside(source, named, metadata, tensors)
    warnings = [*getattr(source, "warnings", ()), *files.notes, *doubts]
    if files.weight_map and (unlisted := [key for key in tensors if key not in files.weight_map]):
        warnings.append(f"{files.index} leaves out what is loaded too: {', '.join(collapse(unlisted)[:8])}")
    if files.total_size not in (None, stored := sum(ref.nbytes for ref in tensors.values())):
        # ChatGLM-6B v1.1 was published with a wrong total, which nothing depends on: the headers decide.
        warnings.append(
            f"{files.index} says total_size {files.total_size:,}; the shards hold {stored:,} bytes"
        )
    return Checkpoint(
        source=source,
        format=" + ".join(dict.fromkeys(names)),
        tensors=MappingProxyType(tensors),
        shards=tuple(
            ShardInfo(file.name, file.size, len(header.tensors), sum(ref.nbytes for ref in header.tensors))
            for file, header in zip(shards, headers, strict=True)
        ),
        config=config,
        index=files.index,
        objects={key: value for header in headers for key, value in header.objects.items()},
        metadata=metadata,
        versions={path: entry for header in headers for path, entry in header.versions.items()},
        warnings=(*warnings, *(note for header in headers for note in header.notes)),
        identities=identities,
        named=named,
        given=place,
        only=stage.patterns if stage else (),
    )


def _open_shards(source: Source, files: WeightFiles) -> list[SourceFile]:
    """Open every shard. The source refuses an unsafe name; all missing files are named in one error."""
    opened: list[SourceFile] = []
    missing: list[str] = []
    for name in files.shards:
        try:
            opened.append(source.open(name))
        except AccessError:
            raise  # it is there
        except NotFoundError:
            missing.append(name)
    if missing:
        by = f" (named by {files.index})" if files.index else ""
        raise NotFoundError(
            f"{len(missing)} of {len(files.shards)} shards are missing",
            where=f"{source.label}: {', '.join(missing[:8])}{by}",
            cure=cure_of(source, "fetch the missing files, or correct the index"),
            code="E-SHARDS",
        )
    return opened


def _read_headers(
    shards: list[SourceFile], state_dict: str | None, *, remote: bool
) -> tuple[list[str], list[Header]]:
    def read(file: SourceFile) -> tuple[str, Header]:
        return (fmt := format_of(file)).name, fmt.read_header(file, state_dict)

    if remote:
        from concurrent.futures import ThreadPoolExecutor

        # Over the network the time is latency: a few headers at once.
        with ThreadPoolExecutor(8) as pool:
            pairs = list(pool.map(read, shards))
    else:
        pairs = [read(file) for file in shards]
    names, headers = [name for name, _ in pairs], [header for _, header in pairs]
    return names, joined_parts(headers, shards) if "gguf" in names else headers


def format_of(file: SourceFile) -> Format:
    """Return the format of a file, judged by its first bytes and never by its name.

    Raises CorruptError or UnsupportedError that names what the file is instead, and what to do about it.
    """
    head = file.read_at(0, HEAD_BYTES)
    for fmt in FORMATS:
        if fmt.matches(head[:64]):
            return fmt
    raise explain(file, head)


def _merge(source: Source, files: WeightFiles, headers: Sequence[Header]) -> dict[str, TensorRef]:
    """Return {key: ref} over all shards. Raises CorruptError where shards and index disagree, either way."""
    found: dict[str, TensorRef] = {}
    entries: dict[str, str] = {}
    faults: list[str] = []
    for shard, header in zip(files.shards, headers, strict=True):
        for ref in header.tensors:
            owner = files.weight_map.get(ref.name, found[ref.name].shard if ref.name in found else shard)
            if ref.name in found and ref.name not in files.weight_map:
                faults.append(f"{ref.name} stands in {found[ref.name].shard} and in {shard}")
            elif owner == shard:
                found[ref.name] = ref
        entries |= dict.fromkeys((ref.name for ref in header.tensors), shard)
        entries |= dict.fromkeys(header.objects, shard)
    lost = [key for key in files.weight_map if key not in found]
    if faults or lost:
        doubled = sum(len(header.tensors) for header in headers) > len(entries)
        raise disagreement(source, files, faults, entries, lost, doubled=doubled)
    if not found:
        raise no_tensors(source)
    return found
