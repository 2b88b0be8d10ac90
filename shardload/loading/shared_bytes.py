"""Stored tensors that share bytes: a pickle keeps the views of one storage, and parameters have to lie apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from shardload.keymap import Derived


def sharing_bytes(tensors: Iterable[tuple[str, Derived]], ties: Collection[Collection[str]]) -> set[str]:
    """Return the names of tensors whose bytes an earlier one has too, or that have one element at several places.

    Mapped, two such parameters would be one memory: a step of an optimizer on one would change the other. Names that
    the model ties are one. Spans are compared, so parts that interlace without overlapping, as columns do, count too.
    """
    owner = {name: index for index, group in enumerate(ties) for name in group}
    found = set()
    refs = [(name, ref) for name, ref in tensors if isinstance(ref, TensorRef)]
    refs.sort(key=lambda pair: (pair[1].shard, pair[1].span.start))
    shard, stop, first = "", 0, ""
    for name, ref in refs:
        if ref.shard != shard:
            shard, stop = ref.shard, 0
        if ref.strides is not None and 0 in ref.strides and ref.numel > 1:
            found.add(name)
        if ref.span.start < stop and owner.get(name, name) != owner.get(first, first):
            found.add(name)
        if ref.span.stop > stop:
            stop, first = ref.span.stop, name
    return found
