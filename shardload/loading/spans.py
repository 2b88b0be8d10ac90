"""Spans: the bytes of each shard that a load reads, of a plan, or expected of headers while there is no plan yet."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from shardload._system.read_ahead import ReadAhead
from shardload.checkpoint.shard import reading_order

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.placement.layout import Layout
    from shardload.tensor_ref import TensorRef

Spans = list[tuple[int, int]]
"""Parts of a file, from start to stop, in order."""


def asked_ahead(
    checkpoint: Checkpoint, spans: Mapping[str, Spans], *, only_inside: bool = False
) -> ReadAhead:
    """Ask the kernel for spans of shards, in order; return the block in which it is asked."""
    ahead = ReadAhead(only_inside=only_inside)
    for name, each in spans.items():
        file = checkpoint.source.open(name)
        if not file.is_remote:  # a download is in the page cache when it is done
            ahead.begin(file.local_path(), each)
    return ahead


def whole_shards(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, Spans]:
    """Return the spans of shards that are read whole."""
    sizes = {shard.name: shard.size for shard in checkpoint.shards}
    return {name: [(0, sizes[name])] for name in names}


def spans_of(refs: Iterable[TensorRef]) -> Spans:
    """Return the bytes of stored tensors of one shard as spans in order; those of tensors that touch are one."""
    spans: Spans = []
    for ref in sorted(refs, key=attrgetter("span")):
        if spans and ref.span.start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(spans[-1][1], ref.span.stop)
        elif ref.span.nbytes:
            spans.append((ref.span.start, ref.span.stop))
    return spans


def expected_spans(checkpoint: Checkpoint, layout: Layout | None, read: str) -> dict[str, Spans]:
    """Return what a load reads in all likelihood: all shards, or the rows that FSDP gives to this rank."""
    shards = [shard.name for shard in checkpoint.shards]
    if layout is None:
        return whole_shards(checkpoint, shards)
    own = layout.own_rows()
    if own is None or read == "once":
        return {}
    parts = ((name, own(tensor)) for name, tensor in checkpoint.tensors.items())
    return {name: spans_of(ref for _, ref in pairs) for name, pairs in reading_order(parts, shards).items()}
