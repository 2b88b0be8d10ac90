"""write_output: checks an Output, writes it file by file, then moves all files in."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from filecmp import cmp
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardload._system.atomic_file import require_space
from shardload._system.file_identity import file_identity
from shardload._system.gc_freeze import gc_frozen
from shardload._system.progress import ProgressMeter
from shardload.errors import CorruptError
from shardload.writing.kernel_copy import same_file
from shardload.writing.layout import Layout
from shardload.writing.output import FileRange, OutputShard, SameFile
from shardload.writing.output_folder import folder_to_write
from shardload.writing.shard_file import differences, verify_copy, verify_shard, write_shard
from shardload.writing.staging import Staging, staging

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shardload._system.progress import ProgressOption
    from shardload.writing.output import Output


@dataclass(frozen=True)
class DiskRoom:
    """Bytes that an output needs on the disk of its folder, bytes that it shares with its source, and free bytes.

    Unchanged weight files of the same disk count as shared, those of another disk as needed.
    """

    needed: int
    shared: int
    free: int

    def to_dict(self) -> dict[str, int]:
        """Return the three numbers of bytes."""
        return vars(self).copy()


@dataclass
class Written:
    """The result of a run: the files of the output, and what was done for them.

    `nbytes` counts bytes as written, cloned, linked or copied. `resumed` names the shards that an earlier run had
    finished. `kept` has the caller's JSON data for each shard, also for those of an earlier run. `cleaned` is the size
    of the unfinished files that were removed.
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    nbytes: Counter[str] = field(default_factory=Counter)
    resumed: list[str] = field(default_factory=list)
    kept: dict[str, object] = field(default_factory=dict)
    cleaned: int = 0
    verified: bool = False
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON-ready data."""
        return {
            "folder": str(self.folder),
            "files": [path.relative_to(self.folder).as_posix() for path in self.files],
            "bytes": dict(self.nbytes),
            "resumed": self.resumed,
            "cleaned_bytes": self.cleaned,
            "verified": self.verified,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class _How:
    """The options of a run."""

    verify: bool
    link: bool
    replace: bool
    keep: Callable[[str], object] | None
    progress: ProgressOption


def write_output(
    folder: str | os.PathLike[str],
    output: Output,
    *,
    job: str = "",
    verify: bool = True,
    link: bool = True,
    replace: bool = False,
    keep: Callable[[str], object] | None = None,
    progress: ProgressOption = None,
) -> Written:
    """Write a checkpoint into a folder, where it appears whole or not at all.

    The folder is new, or holds no weights and none of the output's files. With `replace` it may hold files of the same
    names. These are replaced: after a crash the folder has the old checkpoint, the new one, or no checkpoint until the
    next call completes the new one. Code files with other content are not replaced.

    `job` stands for everything else that decides the bytes, such as versions and options: a killed run is continued
    only where nothing differs. With `replace` a finished shard of a killed run is also read back and compared, because
    weights in memory may have changed. `verify` reads every written file back from the disk. `link=False` never
    hard-links an unchanged file. `keep` returns JSON data about a shard that was just written; the journal stores it
    for a run that continues.

    Raises UsageError for a folder that can't take the output (a source, other weights, another writer), UnsafeError for
    a link that leads out of the folder, NoSpaceError, and CorruptError where a source changes during the run or the
    disk returns other bytes.
    """
    start = time.perf_counter()
    target = folder_to_write(folder, output.sources)
    files = [target / name for name in output.names]
    layouts = _layouts(output)
    whole_job = _fingerprint(output, layouts, job, verify=verify)
    with staging(target, whole_job, replaces=replace) as stage:
        if stage.was_removed and not replace and _is_there(target, output, layouts):
            kept = {shard.name: keep(shard.name) if keep else None for shard in output.shards}
            return Written(target, files, resumed=[*kept], kept=kept, verified=True)
        stage.refuse_others(output.names, alone=output.alone)
        needed = stage.without_unchanged(output) if replace else output
        written = Written(target, cleaned=stage.begin(), verified=verify)
        left = tuple(shard for shard in output.shards if not stage.is_finished(shard.name))
        require_space(target, disk_room(target, dataclasses.replace(needed, shards=left), layouts).needed)
        how = _How(verify, link, replace, keep, progress)
        _write_files(stage, needed, layouts, written, how)
        stage.move_in(needed.names)
    written.files = files
    written.seconds = time.perf_counter() - start
    return written


def disk_room(
    folder: str | os.PathLike[str], output: Output, layouts: Mapping[str, Layout] | None = None
) -> DiskRoom:
    """Return the disk space that an output needs, before anything is written; `layouts` spares planning them again."""
    layouts = layouts or _layouts(output)
    target = folder_to_write(folder)
    base = next(path for path in (target, *target.parents) if path.exists())
    device = base.stat().st_dev
    needed = shared = 0
    for shard in output.shards:
        if isinstance(shard, OutputShard):
            needed += layouts[shard.name].size
        elif shard.path.stat().st_dev == device:
            shared += shard.path.stat().st_size
        else:
            needed += shard.path.stat().st_size
    for content in output.beside.values():
        needed += content.stat().st_size if isinstance(content, Path) else len(content)
    return DiskRoom(needed, shared, shutil.disk_usage(base).free)


@gc_frozen
def _layouts(output: Output) -> dict[str, Layout]:
    return {shard.name: Layout.of(shard) for shard in output.shards if isinstance(shard, OutputShard)}


def _write_files(
    stage: Staging,
    output: Output,
    layouts: dict[str, Layout],
    written: Written,
    how: _How,
) -> None:
    texts = {**output.beside, **dict([output.index] if output.index else [])}
    with ProgressMeter(how.progress, sum(layout.nbytes for layout in layouts.values()), "writing") as meter:
        for name, content in texts.items():
            if not stage.is_finished(name):
                write_beside(stage.draft(name), content)
                stage.finish(name)
        for shard in output.shards:
            meter.shard(shard.name)
            if stage.is_finished(shard.name) and (not how.replace or _is_proven(stage, shard, layouts)):
                written.resumed.append(shard.name)
                meter.tensor(layouts[shard.name].nbytes if shard.name in layouts else 0)
                continue
            draft = stage.draft(shard.name)
            if isinstance(shard, SameFile):
                _check_same(shard)
                kind = same_file(shard.path, draft, link=how.link)
                written.nbytes[kind] += draft.stat().st_size
                _flush(draft)
                if how.verify and kind == "copied":
                    verify_copy(draft, shard.path)
            else:
                layout = layouts[shard.name]
                sums = write_shard(draft, layout, meter, summed=how.verify)
                written.nbytes["written"] += layout.size
                if how.verify:
                    verify_shard(draft, layout, sums)
            stage.finish(shard.name, how.keep(shard.name) if how.keep is not None else None)
    written.kept = {shard.name: stage.journal.kept.get(shard.name) for shard in output.shards}


def _is_proven(stage: Staging, shard: OutputShard | SameFile, layouts: dict[str, Layout]) -> bool:
    return shard.name in layouts and not differences(stage.folder / shard.name, layouts[shard.name])


def _is_there(target: Path, output: Output, layouts: dict[str, Layout]) -> bool:
    """Whether a folder has every file of an output, byte for byte."""
    if not all((target / name).is_file() for name in output.names):
        return False
    copies = {shard.name: shard.path for shard in output.shards if isinstance(shard, SameFile)}
    texts = {**output.beside, **dict([output.index] if output.index else [])}
    for name, content in {**texts, **copies}.items():
        found = target / name
        same = (
            found.read_bytes() == content
            if isinstance(content, bytes)
            else cmp(found, content, shallow=False)
        )
        if not same:
            return False
    return not any(differences(target / name, layout) for name, layout in layouts.items())


def _check_same(shard: SameFile) -> None:
    if shard.expected not in (None, file_identity(shard.path)):
        raise CorruptError(
            f"{shard.path.name} was changed since its header was read",
            where=str(shard.path),
            cure="run it again when no program writes to that file",
        )


def write_beside(path: Path, content: bytes | Path) -> None:
    """Create a file beside the weights, and flush it to the disk."""
    if isinstance(content, Path):
        same_file(content, path, link=False)  # people edit settings: a link would change the source too
    else:
        with path.open("xb") as file:
            file.write(content)
    _flush(path)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@gc_frozen
def _fingerprint(output: Output, layouts: dict[str, Layout], job: str, *, verify: bool) -> str:
    """Return a digest of everything that decides the bytes, except weights in memory."""
    digest = hashlib.sha256(f"{job}\0{verify}\0{output.names}".encode())
    for layout in layouts.values():
        digest.update(layout.header)
        for tensor, _ in layout.places:
            if isinstance(tensor.content, FileRange):
                digest.update(repr((str(tensor.content.path), tensor.content.start)).encode())
    paths = {
        *(t.content.path for y in layouts.values() for t, _ in y.places if isinstance(t.content, FileRange)),
        *(shard.path for shard in output.shards if isinstance(shard, SameFile)),
        *(content for content in output.beside.values() if isinstance(content, Path)),
    }
    for path in sorted(paths):
        digest.update(repr((str(path), file_identity(path))).encode())
    for content in (*output.beside.values(), output.index and output.index[1]):
        digest.update(content if isinstance(content, bytes) else b"\0")
    return digest.hexdigest()
