"""ReadOnce: of the ranks that hold the same part of a tensor, the first one reads it and sends it to the others.

Imported only for `read="once"`. What is sent are the stored bytes, by groups of their own over gloo, in an order that
is the same on all ranks. A rank that fails closes its groups, which ends what the others wait for.
"""

from __future__ import annotations

from ast import literal_eval
from typing import TYPE_CHECKING

import torch
from torch.distributed import distributed_c10d

from shardload.checkpoint.shard import packed_memory, torch_dtype
from shardload.tensor_ref import torch_shape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Self

    from shardload._system.agreement import Agreement
    from shardload.checkpoint.shard import AnyShard
    from shardload.loading.plan import Plan
    from shardload.placement.sharded import Sharded
    from shardload.tensor_ref import TensorRef


class ReadOnce:
    """The groups of ranks that hold the same parts, used as a `with` block: each part is read once in its group.

    A tensor that no rank holds a part of is the same on all of them. Making one is collective.
    """

    def __init__(self, target: Sharded, ranks: Agreement, plan: Plan, names: Iterable[str]) -> None:
        self.received = 0  # bytes
        self._ranks = ranks
        self._order = {name: number for number, name in enumerate(names)}
        # A module's own loader, or a claim, gets whole tensors.
        seen = {name: part.seen() for name, part in target.parts.items() if name in plan.direct}
        layouts = list(dict.fromkeys(seen.values()))
        ranks.require_same("the ways in which tensors lie over ranks", repr([kind for kind, _ in layouts]))
        places = ranks.gathered("places", repr([place for _, place in layouts]))
        told = [literal_eval(each) for each in places]
        self._alike: dict[object, tuple[int, ...]] = {}  # by layout
        for number, layout in enumerate(layouts):
            pairs = zip(ranks.ranks, told, strict=True)
            self._alike[layout] = tuple(rank for rank, each in pairs if each[number] == layout[1])
        self._seen = seen
        self._groups = {
            alike: ranks.group(f"group {alike[0]}/{number}", alike)
            for number, alike in enumerate(dict.fromkeys([ranks.ranks, *self._alike.values()]))
            if len(alike) > 1
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._groups.clear()  # which closes their connections

    def in_order(self, pairs: Iterable[tuple[str, TensorRef]]) -> list[tuple[str, TensorRef]]:
        """Return the parts of a shard in an order that all ranks agree on, whichever parts are theirs."""
        return sorted(pairs, key=lambda pair: (self._order[pair[1].name], pair[0], pair[1].span.start))

    def reads(self, key: str) -> bool:
        """Whether this rank reads the part of that name itself."""
        return self._holders(key)[0] == self._ranks.rank

    def tensor(self, key: str, ref: TensorRef, shard: AnyShard | None) -> torch.Tensor:
        """Return a part as it is stored, read or received; `shard` is None on a rank that reads nothing of the file."""
        holders = self._holders(key)
        if self.reads(key):
            assert shard is not None
            tensor = shard.tensor(ref).contiguous()
        else:
            dtype = torch_dtype(ref)
            tensor = packed_memory(ref.nbytes, dtype).view(torch_shape(ref.dtype, ref.shape))
            self.received += ref.nbytes
        if len(holders) > 1 and tensor.numel():
            options = distributed_c10d.BroadcastOptions()
            options.rootRank, options.rootTensor = 0, 0
            try:
                self._groups[holders].broadcast([tensor.view(-1).view(torch.uint8)], options).wait()
            except RuntimeError as error:
                self._groups.clear()  # which ends what others wait for
                raise self._ranks.lost(error) from error
        return tensor

    def _holders(self, key: str) -> tuple[int, ...]:
        layout = self._seen.get(key)
        return self._ranks.ranks if layout is None else self._alike[layout]
