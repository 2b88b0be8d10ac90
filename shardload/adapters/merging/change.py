"""Change: what adapters do to one tensor of the base, and the loop that applies it block by block."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

import torch

from shardload.adapters.layers import Factors, LoraTerm
from shardload.adapters.layers.embedding import EmbeddingTerm
from shardload.adapters.layers.experts import ExpertsTerm
from shardload.adapters.layers.linear import LinearTerm
from shardload.adapters.layers.rows import RowsTerm
from shardload.adapters.layers.transposed import TransposedTerm
from shardload.adapters.merging.survival import MergedTensor, Survival
from shardload.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from shardload.adapters.layers.term import Shape
    from shardload.adapters.merging.rounding import Rounding
    from shardload.adapters.merging.survival import Sums
    from shardload.adapters.merging.workers import Workers

Folded = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

Index = tuple["int | slice", ...]

BLOCK = 1 << 18
"""Elements of a block: 1 MB in fp32, so that its five intermediate tensors fit into a core's caches."""

LARGE = 1 << 23
"""Elements of a large factor, 32 MB in fp32: a vocabulary's factor of a high rank is many times larger."""

_INLINE = 1 << 15  # elements; the grain of torch's own threads
_UNIT = 16  # rows: blocks are made of these
_WIDEST = 16  # blocks' worth of elements that 16 rows may take together where rows are very long


@dataclass(frozen=True)
class BiasTerm(LoraTerm):
    """The bias of B, scaled and added to the base's bias."""

    def delta(self, factors: Factors, shape: Shape, rows: slice | None = None) -> torch.Tensor:  # noqa: ARG002
        """Return scale * bias, or some rows of it."""
        if factors.bias is None:
            raise AssertionError(self.attribute)
        return (factors.bias if rows is None else factors.bias[rows]) * self.scale

    @classmethod
    def of(cls, term: LoraTerm) -> BiasTerm:
        """Return the term of the bias that belongs to a term of the weight."""
        return cls(term.rank, term.scale, attribute="bias")


@dataclass(frozen=True)
class Addition:
    """One adapter's change of a base tensor, at a weight."""

    term: LoraTerm
    factors: Factors
    weight: float = 1.0


@dataclass
class Change:
    """Everything that adapters do to one tensor of the base: a replacement first, then additions.

    `apart`: the change is for this tensor alone and not for its ties, as every delta is. Saved embeddings and single
    rows go to the ties too, as in PEFT.
    """

    name: str
    additions: list[Addition] = field(default_factory=list)
    replacement: torch.Tensor | None = None
    adapters: int = 0
    apart: bool = False

    def row(self, shape: Shape, dtype: torch.dtype, survival: Survival) -> MergedTensor:
        """Return the report's row for the tensor after this change was merged into it."""
        share, relative = (survival.share, survival.relative) if self.additions else (None, None)
        name = str(dtype).removeprefix("torch.")
        return MergedTensor(self.name, tuple(shape), name, self.adapters, share, relative)


def merged_blocks(
    base: torch.Tensor,
    change: Change,
    dtype: torch.dtype,
    rounding: Rounding,
    survival: Survival,
    workers: Workers | None = None,
) -> Iterator[tuple[Index, torch.Tensor]]:
    """Yield a tensor with its change folded in, in blocks in C order, each with its index, rounded once to `dtype`.

    `LoraTerm` computes in fp32, or in fp64 where base or factors are; for one plain LoRA adapter the operations and
    their order are those of PEFT's merge. Only a few blocks and the factors are in memory. `workers` compute blocks
    ahead. Raises CorruptError for a result that is not finite.
    """
    source = base if change.replacement is None else change.replacement
    if change.additions and all(isinstance(each.term, ExpertsTerm) for each in change.additions):
        # All experts together may be too large for memory: each is merged as a matrix.
        for expert in range(source.shape[0]):
            additions = [of_expert(each, expert, source.shape[0]) for each in change.additions]
            one = replace(change, additions=additions)
            for index, block in merged_blocks(source[expert], one, dtype, rounding, survival, workers):
                yield (expert, *index), block
        return
    # torch computes a small tensor on one thread, and handing it to a worker takes longer than that.
    inline = workers is None or source.device.type != "cpu" or source.numel() <= _INLINE
    compute = map if inline or workers is None else workers.map
    if not change.additions:
        for rows in row_blocks(tuple(source.shape)):
            block = rounding(source[rows], dtype)
            yield (rows,), _finite(block.contiguous(), change.name, dtype)
        return
    fold = _Fold(source, change, compute)

    def rounded(parts: Folded) -> tuple[torch.Tensor, Sums]:
        wide, merged, delta = parts
        block = _finite(rounding(merged, dtype).contiguous(), change.name, dtype)
        return block, Survival.sums_of(wide, delta, block)

    def whole(rows: slice) -> tuple[slice, torch.Tensor, Sums]:
        return rows, *rounded(fold.rows(rows))

    blocks = row_blocks(tuple(source.shape))
    if rounding.is_in_order:
        results = ((rows, *rounded(parts)) for rows, parts in compute(fold.with_rows, blocks))
    else:
        results = compute(whole, blocks)  # type: ignore[assignment]
    for rows, block, sums in results:
        survival.count(sums)
        yield (rows,), block


def of_expert(addition: Addition, expert: int, experts: int) -> Addition:
    """Return the addition to the matrix of one of several experts, as for a Linear or a transposed one."""
    term, factors = addition.term, addition.factors
    a = factors.a.view(experts, -1, factors.a.shape[1])[expert]
    b = factors.b.view(factors.b.shape[0], -1, experts)[:, :, expert]
    made = TransposedTerm if getattr(term, "inputs_first", False) else LinearTerm
    one = made(term.rank, term.scale, attribute=term.attribute)
    return replace(addition, term=one, factors=Factors(a, b))


def row_blocks(shape: Shape) -> Iterator[slice]:
    """Yield slices of dimension 0 of about BLOCK elements and of even length.

    None is much shorter than the others: for a few rows BLAS takes another path, which rounds differently.
    """
    count = shape[0]
    width = max(prod(shape[1:]), 1)
    step = BLOCK // width
    if step < _UNIT:
        step = min(_UNIT, max(1, _WIDEST * BLOCK // width))
    unit = min(_UNIT, step)
    units = -(-count // unit)
    blocks = -(-units // max(step // unit, 1))
    for number in range(blocks):
        start, stop = (units * place // blocks * unit for place in (number, number + 1))
        yield slice(start, min(stop, count))


class _Fold:
    """The additions of one tensor, with factors in the wide dtype, and DoRA's norms where they take a pass first."""

    def __init__(
        self, base: torch.Tensor, change: Change, compute: Callable[..., Iterable[torch.Tensor]]
    ) -> None:
        self.base = base
        self.dtype = torch.float32
        for addition in change.additions:
            self.dtype = torch.promote_types(self.dtype, addition.factors.a.dtype)
        self.dtype = torch.promote_types(self.dtype, base.dtype)
        self.shape = tuple(base.shape)
        self.additions = [
            addition
            if _is_large(addition)
            else replace(addition, factors=_on(addition.factors, base.device, self.dtype))
            for addition in change.additions
        ]
        self.norms = [self._norm(addition, compute) for addition in self.additions]

    def _norm(
        self, addition: Addition, compute: Callable[..., Iterable[torch.Tensor]]
    ) -> torch.Tensor | None:
        """Return DoRA's norms where they take a pass over all rows; None where each block has its own."""
        term, factors = addition.term, addition.factors
        if factors.magnitude is None or not term.dora_axis:
            return None

        def squares(rows: slice) -> torch.Tensor:
            return term.norm_squares(self.base[rows].to(self.dtype), term.delta(factors, self.shape, rows))

        total = torch.zeros((), dtype=self.dtype, device=self.base.device)
        for block in compute(squares, row_blocks(self.shape)):
            total = total + block
        return total.sqrt()

    def with_rows(self, rows: slice) -> tuple[slice, Folded]:
        """Return the slice and the result of `rows` for it."""
        return rows, self.rows(rows)

    def rows(self, rows: slice) -> Folded:
        """Return a block in the wide dtype: of the base, of the changed tensor, and of the change alone."""
        wide = self.base[rows].to(self.dtype)
        total: torch.Tensor | None = None
        for addition, norm in zip(self.additions, self.norms, strict=True):
            term, factors, weight = addition.term, addition.factors, addition.weight
            plain = factors.magnitude is None and not isinstance(term, RowsTerm)
            if plain or isinstance(term, BiasTerm):
                delta = self._delta(addition, rows)
                delta = delta if weight == 1.0 else weight * delta
            else:
                changed = term.changed(wide, factors, weight, rows, self.shape, norm)
                delta = changed - wide
                if len(self.additions) == 1:
                    return wide, changed, delta
            total = delta if total is None else total + delta
        if total is None:
            raise AssertionError(self.shape)
        return wide, wide + total, total

    def _delta(self, addition: Addition, rows: slice) -> torch.Tensor:
        """Return some rows of a delta; only their part of a large factor is copied into memory."""
        term, factors = addition.term, addition.factors
        if not _is_large(addition):
            return term.delta(factors, self.shape, rows)
        a, b = factors.a, factors.b
        if isinstance(term, LinearTerm) and not isinstance(term, TransposedTerm):
            b = b[rows]
        else:
            a = a[:, rows]
        shape = (rows.stop - rows.start, *self.shape[1:])
        return term.delta(_on(Factors(a, b), self.base.device, self.dtype), shape)


def _is_large(addition: Addition) -> bool:
    """Return whether a factor is too large to be copied into memory as a whole, in the wide dtype."""
    plain = type(addition.term) in {LinearTerm, TransposedTerm, EmbeddingTerm}
    factors = addition.factors
    return plain and factors.magnitude is None and max(factors.a.numel(), factors.b.numel()) > LARGE


def _on(factors: Factors, device: torch.device, dtype: torch.dtype) -> Factors:
    """Return copies of the factors: a view of a file may be unaligned, for which BLAS rounds differently."""
    parts = (factors.a, factors.b, factors.bias, factors.magnitude)
    return Factors(*(None if part is None else part.detach().to(device, dtype, copy=True) for part in parts))  # type: ignore[arg-type]


def _finite(block: torch.Tensor, name: str, dtype: torch.dtype) -> torch.Tensor:
    if block.numel() and not all(torch.isfinite(bound) for bound in torch.aminmax(block)):
        kind = str(dtype).removeprefix("torch.")
        raise CorruptError(
            f"the merged tensor holds NaN or Inf in {kind}",
            where=name,
            cure="pass a dtype of wider range (bfloat16, float32), or look at base and adapter: one of them holds "
            "values that no weight should have",
        )
    return block
