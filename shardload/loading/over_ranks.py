"""A load over ranks: which of them end it alike, and what is the same on all. Imported only where there are some."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from shardload._system.file_sample import file_sample
from shardload.checkpoint.shard import Shard
from shardload.errors import RanksError
from shardload.keymap import leaves
from shardload.placement.mesh_ranks import ranks_that_hold
from shardload.placement.sharded import Sharded, parts_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardload._system.agreement import Agreement
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.keymap import KeyMap
    from shardload.loading.judge import Comparison
    from shardload.loading.read_once import ReadOnce
    from shardload.model.shell import Shell
    from shardload.placement.target import Target

_SHOWN = 4
_HEAD = 2**12  # bytes of a file


def ranks_of(shell: Shell) -> tuple[int, ...]:
    """Return the ranks that hold the model together; none for a model of one process."""
    return ranks_that_hold(parts_in(shell).values())


def require_same(
    ranks: Agreement, shell: Shell, checkpoint: Checkpoint, rules: KeyMap | None, target: Target, read: str
) -> None:
    """Raise RanksError unless all ranks fill the same model from the same headers, and make the same of these."""
    assert isinstance(target, Sharded)
    target.look = partial(ranks.look, seldom=True)
    headers = sorted((ref.name, ref.dtype, ref.shape) for ref in checkpoint.tensors.values())
    slots = sorted((slot.name, slot.shape, slot.kind, str(slot.dtype)) for slot in shell.slots.values())
    lie = sorted((name, repr(part.seen()[0])) for name, part in target.parts.items())
    made = target.dtype, rules.to_json() if rules else None
    ranks.require_same("the dtype or the key map", repr(made), cure="pass the same ones on all ranks")
    ranks.require_same("the headers of the checkpoint", repr(headers))
    ranks.require_same("the tensors of the model, or how they are read,", repr((slots, lie, read)))


@contextmanager
def reading(target: Target, ranks: Agreement, comparison: Comparison, read: str) -> Iterator[ReadOnce | None]:
    """Let ranks read the same files, and with `read="once"` those that hold the same part share one read of it."""
    if read != "once":
        require_same_files(ranks, comparison, None)
        yield None
        return
    from shardload.loading.read_once import ReadOnce

    assert isinstance(target, Sharded)
    stored = comparison.checkpoint.tensors.values()
    names = dict.fromkeys(ref.name for tensor in stored for ref in leaves(tensor))
    with ReadOnce(target, ranks, comparison.plan, names) as once:
        require_same_files(ranks, comparison, once)
        yield once


def require_same_files(ranks: Agreement, comparison: Comparison, once: ReadOnce | None) -> None:
    """Raise RanksError, on all ranks, where two of them read different files of one name.

    Of a file on a disk its size, the places of its tensors and some pages are compared; a repo at a commit is what that
    commit says.
    """
    checkpoint = comparison.checkpoint
    places = _places(checkpoint)
    read = {
        ref.shard
        for key, tensor in comparison.plan.tensors
        if once is None or once.reads(key)
        for ref in leaves(tensor)
        if ref.nbytes
    }
    with ranks.judging():
        others = []
        for name in sorted(read):
            own = _identity(checkpoint, name, places[name])
            said = ranks.first_to_say(f"file/{name}", json.dumps([ranks.rank, own])) if own else "null"
            first, identity = json.loads(said) or (ranks.rank, own)
            if identity != own:
                others.append((name, first))
        if others:
            name, first = others[0]
            raise RanksError(
                f"the {name} that this rank reads is not that of rank {first}",
                where=", ".join(each for each, _ in others[:_SHOWN])
                + (f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else "")
                + f" of {checkpoint.label}",
                cure="give all ranks the same version of the checkpoint: shardload verify says which file is whole",
            )


def _identity(checkpoint: Checkpoint, name: str, places: str) -> list[str]:
    """Return what tells a file from others; nothing for one that was cut off: the load names what it lacks."""
    commit = checkpoint.source.revision
    if commit is not None:
        return ["commit", commit]
    file = checkpoint.source.open(name)
    if file.is_streamed:
        return ["store", places, hashlib.sha256(file.read_at(0, _HEAD)).hexdigest()]
    path, expected = file.local_path(), checkpoint.identities.get(name)
    with Shard(path, copy=True, expected=expected):  # which raises what the load would
        if expected is not None and path.stat().st_size < expected[1]:
            return []
        return ["file", places, file_sample(path)]


def _places(checkpoint: Checkpoint) -> dict[str, str]:
    """Return a digest of where the tensors lie in each shard."""
    digests = {shard.name: hashlib.sha256() for shard in checkpoint.shards}
    for tensor in checkpoint.tensors.values():
        for ref in leaves(tensor):
            digests[ref.shard].update(f"{ref.name} {ref.span.start} {ref.span.stop}\n".encode())
    return {name: digest.hexdigest() for name, digest in digests.items()}
