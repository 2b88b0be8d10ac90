"""The bytes of joined and dequantised tensors that are in memory while their parts arrive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardload.keymap.derived import as_view, reading_places
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from shardload.keymap.derived import Derived


@dataclass(frozen=True)
class Residence:
    """Bytes of joined and dequantised tensors, which are in anonymous memory. Views of files are not counted.

    `joined` tensors take `nbytes` when all are complete. `peak` is the most that is begun and incomplete at one moment,
    when every shard is read once in the given order; the parts of `across` tensors lie in several shards.
    """

    joined: int = 0
    nbytes: int = 0
    peak: int = 0
    across: int = 0


def residence(tensors: Mapping[str, Derived] | Iterable[Derived], shards: Sequence[str]) -> Residence:
    """Return the bytes of joined tensors when shards are read in order, each from its first byte to its last.

    A tensor whose parts lie side by side in one file is a view and is not counted.
    """
    values = tensors.values() if hasattr(tensors, "values") else tensors
    joined = [tensor for tensor in values if not isinstance(tensor, TensorRef) and as_view(tensor) is None]
    order = {shard: place for place, shard in enumerate(shards)}
    events: list[tuple[tuple[int, int], int, int]] = []
    across = 0
    for tensor in joined:
        places = [(order.get(ref.shard, len(order)), place) for ref, place in reading_places(tensor)]
        if places:
            events += [(min(places), 0, tensor.nbytes), (max(places), 1, -tensor.nbytes)]
            across += len({shard for shard, _ in places}) > 1
    held = peak = 0
    for _, _, change in sorted(events):
        held += change
        peak = max(peak, held)
    return Residence(len(joined), sum(tensor.nbytes for tensor in joined), peak, across)
