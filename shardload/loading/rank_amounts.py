"""What each rank of a sharded load reads and holds, from headers. Imports neither torch nor torch.distributed.

FSDP cuts the rows of every tensor; tensor parallelism cuts what a plan names, before. Tensors of one shape are counted
together, so 256 ranks of 90,000 tensors take as long as a few.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from shardload.errors import UnsupportedError, UsageError, Wording
from shardload.loading.memory_plan import ROOM_TO_COMPUTE, ROOM_TO_MAP, Statement
from shardload.placement.cut import Cut, Split, cut_by
from shardload.placement.taken import NOTHING, Taken, padded, taken_on_device
from shardload.placement.tp_plan import refuse_what_stays_cut
from shardload.tensor_ref import DTYPE_BITS, Span, TensorRef

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from shardload.keymap import Derived

_PACKED = ("packed_colwise", "packed_rowwise")  # of gate and up in one weight, each rank has some of both
_ROWS = ("colwise", "colwise_rep", "colwise_gather_output", "packed_colwise", "embedding_rowwise")
_COLUMNS = ("rowwise", "rowwise_rep", "rowwise_split_input", "packed_rowwise", "embedding_colwise")
_SHOWN = 8  # modules of a message

Kind = tuple[tuple[int, ...], str, int | None, int]
"""Shape, dtype, the dimension that tensor parallelism cuts, and in how many pieces."""


@dataclass(frozen=True)
class RankAmounts:
    """Bytes of one rank: what it reads, what it holds when all is loaded, and the anonymous memory at its peak."""

    rank: int
    read: int
    anon: int
    file: int
    device: int
    peak: int


@dataclass(frozen=True)
class Ranks:
    """FSDP over `fsdp` ranks, and tensor parallelism over `tp` by a plan; `device` and `code` are those of the load.

    A rank's number is that of a mesh of these dimensions: `fsdp` first.
    """

    fsdp: int
    tp: int
    plan: Mapping[str, str]
    device: str = "cpu"
    code: str | None = None
    copy: bool = False

    def __post_init__(self) -> None:
        for name, size in (("fsdp", self.fsdp), ("tp", self.tp)):
            if type(size) is not int or size < 1:
                raise UsageError(Wording("{0} is no number of ranks", size), where=f"{name}=")

    def amounts(self, tensors: Mapping[str, Derived], shards: Sequence[str]) -> list[RankAmounts]:
        """Return the amounts of every rank."""
        kind_of: dict[str, Kind] = {
            name: (tensor.shape, tensor.dtype, *self.cut_of(name, tensor.shape))
            for name, tensor in tensors.items()
        }
        kinds = Counter(kind_of.values())
        work = self._work_space(tensors, kind_of, shards)
        computes = self._of_rank(0, kinds, 0).anon > 0
        ranks = [self._of_rank(rank, kinds, work) for rank in range(self.fsdp * self.tp)]
        if computes:
            return ranks
        # FSDP pads the parts of later ranks, so these copy where the first one maps.
        more = ROOM_TO_COMPUTE - ROOM_TO_MAP
        return [replace(rank, peak=rank.peak + more) if rank.anon else rank for rank in ranks]

    def cut(self, shape: tuple[int, ...], dim: int | None, pieces: int, rank: int) -> Cut:
        """Return the part of a tensor that a rank holds, where tensor parallelism cuts a dimension, or none."""
        splits = [] if not shape else [Split(0, self.fsdp, rank // self.tp, outer=True)]
        if dim is not None:
            splits.append(Split(dim, self.tp, rank % self.tp, pieces=pieces))
        return cut_by(shape, tuple(splits))

    def cut_of(self, name: str, shape: tuple[int, ...]) -> tuple[int | None, int]:
        """Return the dimension that tensor parallelism cuts of a tensor, or None, and in how many pieces it is cut.

        A plan names modules, and parameters of their own: experts in one tensor, whose first dimension is theirs.
        """
        if self.tp == 1 or not shape:
            return None, 1
        module = name.rpartition(".")[0]
        style = next(
            (style for pattern, style in self._patterns() if pattern.search(module) or pattern.search(name)),
            None,
        )
        rows = max(len(shape) - 2, 0)
        if style in _COLUMNS and len(shape) > 1:
            torchs_own = style != "embedding_colwise" and "embed" in module.rpartition(".")[2]
            dim: int | None = rows if torchs_own else rows + 1
        else:  # the bias of a rowwise layer is added after the sum
            dim = rows if style in _ROWS else None
        is_packed = style in _PACKED and dim is not None and shape[dim] % 2 == 0 and len(shape) > 1
        return dim, 2 if is_packed else 1

    def cut_names(self, tensors: Mapping[str, Derived]) -> list[str]:
        """Return the tensors that the plan cuts."""
        return [name for name, tensor in tensors.items() if self.cut_of(name, tensor.shape)[0] is not None]

    def _patterns(self) -> Iterator[tuple[re.Pattern[str], str]]:
        for pattern, style in self.plan.items():
            yield _pattern(pattern), style

    def _of_rank(self, rank: int, kinds: Counter[Kind], work: int) -> RankAmounts:
        read = mapped = 0
        total = NOTHING
        for (shape, dtype, dim, pieces), count in kinds.items():
            nbytes, taken = self._part(shape, dtype, dim, pieces, rank)
            read += nbytes * count
            mapped += nbytes * count if not any(taken) else 0
            total = total.plus(taken, count)
        peak = total.anonymous + total.passing + work
        return RankAmounts(rank, read, total.anonymous, mapped, total.device, peak)

    def _part(
        self, shape: tuple[int, ...], dtype: str, dim: int | None, pieces: int, rank: int
    ) -> tuple[int, Taken]:
        """Return the bytes that a rank reads of a tensor, and those that its part takes beside the file."""
        part, longest = (self.cut(shape, dim, pieces, each).shape for each in (rank, rank % self.tp))
        nbytes, taken = self._taken(part, dtype)
        if part != longest:
            length, most = self._taken(longest, dtype)
            return nbytes, padded(taken, most, length)
        if not any(taken) and nbytes and (self.copy or dim or pieces > 1):
            taken = Taken(anonymous=nbytes)
        return nbytes, taken

    def _taken(self, part: tuple[int, ...], dtype: str) -> tuple[int, Taken]:
        nbytes = prod(part) * DTYPE_BITS[dtype] // 8
        ref = TensorRef("", dtype, part, "", Span(0, nbytes))
        return nbytes, taken_on_device(ref, self.code, device=self.device)

    def _work_space(
        self, tensors: Mapping[str, Derived], kind_of: Mapping[str, Kind], shards: Sequence[str]
    ) -> int:
        """Return what the first rank works in beside its weights: no rank has larger parts."""
        statement = Statement(shards, self.copy)
        of_kind: dict[Kind, tuple[Cut, Taken]] = {}
        for name, tensor in tensors.items():
            kind = shape, dtype, dim, pieces = kind_of[name]
            if kind not in of_kind:
                taken = self._part(shape, dtype, dim, pieces, 0)[1]
                of_kind[kind] = self.cut(shape, dim, pieces, 0), taken
            cut, taken = of_kind[kind]
            statement.add(cut.of(tensor), taken)
        return statement.plan().staging


def plan_of(
    config: Mapping[str, Any] | None,
    given: Mapping[str, str] | None,
    tp: int,
    tensors: Mapping[str, Derived],
) -> Mapping[str, str]:
    """Return the caller's plan for tensor parallelism, or that of the class of transformers that a config names.

    Raises UsageError for a plan of the caller's that takes none of the tensors, cuts over no ranks or has an unknown
    style, and UnsupportedError where nobody has a plan, or a load would refuse the caller's.
    """
    if given is not None and tp == 1:
        raise UsageError(
            Wording("{tp_plan} cuts nothing: there are no ranks of tensor parallelism", tp_plan=given),
            cure=Wording("say over how many ranks: {tp}", tp=...),
        )
    if given is not None:
        _check(given, tensors)
        _refuse_as_a_load_does(config, given, tensors)
        return given
    if tp == 1:
        return {}
    plan: Mapping[str, str] = getattr(_library_config(config), "base_model_tp_plan", None) or {}
    if not plan:
        kind, modules = (config or {}).get("model_type"), _modules(tensors)
        more = f" and {len(modules) - _SHOWN} more" if len(modules) > _SHOWN else ""
        raise UnsupportedError(
            "which layers tensor parallelism cuts is not in the headers, and no class of transformers says it",
            where=f"model_type {kind!r}, modules {', '.join(modules[:_SHOWN])}{more}",
            cure=Wording('name them, each with "colwise" or "rowwise": {tp_plan}', tp_plan=...),
        )
    return plan


def _library_config(config: Mapping[str, Any] | None) -> Any:
    """Return the class of an installed transformers for a config; None without one."""
    try:
        from transformers import CONFIG_MAPPING

        return CONFIG_MAPPING[(config or {}).get("model_type")]
    except (ImportError, KeyError):
        return None


def _refuse_as_a_load_does(
    config: Mapping[str, Any] | None, plan: Mapping[str, str], tensors: Mapping[str, Derived]
) -> None:
    """Refuse what a load refuses of a plan by its modules. A class of transformers cuts itself, as it likes."""
    shapes = {name.rpartition(".")[0]: tensor.shape for name, tensor in tensors.items()}
    shapes |= {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in tensors.items()
        if name.endswith(".weight")
    }
    styles = {
        name: style for pattern, style in plan.items() for name in shapes if _pattern(pattern).search(name)
    }

    def features(name: str) -> tuple[int, int]:
        shape = shapes[name]
        return (shape[1], shape[0]) if len(shape) == 2 and f"{name}.weight" in tensors else (0, 0)

    try:
        refuse_what_stays_cut(styles, features)
    except UnsupportedError:
        if "auto_map" in (config or {}) or _library_config(config) is None:
            raise


def idle(plan: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """Return the names of a plan that take no tensor: the head of a model whose head is tied, or a slip."""
    modules = {each for name in names for each in (name, name.rpartition(".")[0])}
    return [pattern for pattern in plan if not any(map(_pattern(pattern).search, modules))]


def _check(plan: Mapping[str, str], names: Iterable[str]) -> None:
    for pattern, style in plan.items():
        if style not in (*_ROWS, *_COLUMNS):
            cure = f"use one of {', '.join((*_ROWS, *_COLUMNS))}"
            raise UsageError(f"{style!r} is no style", where=pattern, cure=cure)
    names = list(names)
    if plan and len(idle(plan, names)) == len(plan):
        modules = _modules(names)
        near = [each for name in plan for each in difflib.get_close_matches(name, modules, 2, 0.4)]
        shown = ", ".join([*dict.fromkeys(near or modules)][:_SHOWN])
        raise UsageError(
            f"no module of the checkpoint is {' or '.join(map(repr, plan))}",
            where=Wording("{tp_plan}", tp_plan=...),
            cure=f"the nearest: {shown}" if near else f"name some of {shown}",
        )


def _modules(names: Iterable[str]) -> list[str]:
    return [*dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name.rpartition(".")[0]) for name in names)]


_COMPILED: dict[str, re.Pattern[str]] = {}


def _pattern(text: str) -> re.Pattern[str]:
    found = _COMPILED.get(text)
    if found is None:
        found = _COMPILED[text] = re.compile(rf"(?:^|\.){re.escape(text).replace(chr(92) + '*', '[^.]+')}$")
    return found
