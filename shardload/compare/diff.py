"""Difference: where two checkpoints differ, by their headers and, on request, by their values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardload._system.progress import ProgressMeter
from shardload.checkpoint.opened import opened
from shardload.keymap import KeyMap, leaves
from shardload.keywords import entry_point
from shardload.tensor_ref import TORCH_NAMES

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import torch
    from typing_extensions import Unpack

    from shardload._system.progress import ProgressOption
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.keymap import Derived, Names
    from shardload.keywords import WhereKeywords
    from shardload.where import WhereLike

SCHEMA = "shardload.diff/1"
_BLOCK = 1 << 20  # elements compared at once: four such blocks in float64 take 32 MiB


@dataclass(frozen=True)
class Header:
    """Shape and dtype (torch's name) of one tensor."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.shape))}] {self.dtype}"


@dataclass(frozen=True)
class ValueDifference:
    """How much two tensors of one shape differ, computed in float64.

    `different` counts the elements that are not equal; two NaNs count as equal. `max_abs` is the largest absolute
    difference: infinite or NaN where only one tensor is. `cosine` is None where a tensor is all zeros or not finite.
    """

    different: int
    max_abs: float
    cosine: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data; infinities and NaN become null."""
        return {
            "different": self.different,
            "max_abs": self.max_abs if math.isfinite(self.max_abs) else None,
            "cosine": self.cosine,
        }


@dataclass
class Difference:
    """Where two checkpoints differ, by key. `values` holds the tensors whose numbers differ, if they were compared.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "a"), shardload.save(torch.nn.Linear(5, 2), "b")
        >>> found = shardload.diff("a", "b")
        >>> found.same, found.only_a, {key: f"{a} and {b}" for key, (a, b) in found.shapes.items()}
        (1, {}, {'weight': '[2, 4] float32 and [2, 5] float32'})

    `same` counts the tensors of the same shape and dtype, `compared` those whose numbers were compared.
    """

    a: str
    b: str
    same: int = 0
    only_a: dict[str, Header] = field(default_factory=dict)
    only_b: dict[str, Header] = field(default_factory=dict)
    shapes: dict[str, tuple[Header, Header]] = field(default_factory=dict)
    dtypes: dict[str, tuple[Header, Header]] = field(default_factory=dict)
    values: dict[str, ValueDifference] | None = None
    compared: int = 0

    @property
    def ok(self) -> bool:
        """Whether the checkpoints are equal, as far as they were compared."""
        return not (self.only_a or self.only_b or self.shapes or self.dtypes or self.values)

    def to_dict(self) -> dict[str, Any]:
        """Return the difference as JSON data, with the version of its schema.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "a"), shardload.save(torch.nn.Linear(5, 2), "b")
        >>> shardload.diff("a", "b").to_dict()["shapes"]["weight"]["a"]
        {'shape': [2, 4], 'dtype': 'float32'}
        """
        pairs = {"shapes": self.shapes, "dtypes": self.dtypes}
        return {
            "schema": SCHEMA,
            "a": self.a,
            "b": self.b,
            "ok": self.ok,
            "same": self.same,
            "only_a": {key: _document(header) for key, header in self.only_a.items()},
            "only_b": {key: _document(header) for key, header in self.only_b.items()},
            **{
                name: {key: {"a": _document(a), "b": _document(b)} for key, (a, b) in found.items()}
                for name, found in pairs.items()
            },
            "compared": self.compared,
            "values": None
            if self.values is None
            else {key: value.to_dict() for key, value in self.values.items()},
        }


def _document(header: Header) -> dict[str, Any]:
    return {"shape": list(header.shape), "dtype": header.dtype}


@entry_point
def diff(
    a: WhereLike | Checkpoint,
    b: WhereLike | Checkpoint,
    *,
    key_map: KeyMap | Names | str | os.PathLike[str] | None = None,
    values: bool = False,
    progress: ProgressOption = None,
    **keywords: Unpack[WhereKeywords],
) -> Difference:
    """Compare the keys, shapes and dtypes of two checkpoints, from their headers; with `values` also their numbers.

        >>> import torch, shardload
        >>> model = torch.nn.Linear(4, 2, bias=False)
        >>> files = shardload.save(model, "before")
        >>> model.weight.data[0, 0] += 1
        >>> files = shardload.save(model, "after")
        >>> shardload.diff("before", "after", values=True).values["weight"].different
        1

    `key_map` is applied to `a` first. Numbers are read block by block, which takes about 40 MB of memory for any size,
    and are compared as float64 where the dtypes differ. The other keywords are those of `open_checkpoint` and hold for
    both checkpoints. Raises what `open_checkpoint` raises, and UsageError for a key map that does not fit `a`.
    """
    first, second = opened(keywords, a, b)
    left: Mapping[str, Derived] = first.tensors
    rules = KeyMap.of(key_map)
    if rules.rules:
        mapped = rules.map_headers(first.tensors)
        rules.require_fit(first.tensors, mapped)
        left = mapped.tensors
    found = Difference(first.label, second.label)
    shared: list[str] = []
    for key, tensor in left.items():
        other = second.tensors.get(key)
        if other is None:
            found.only_a[key] = _header(tensor)
        elif tensor.shape != other.shape:
            found.shapes[key] = _header(tensor), _header(other)
        else:
            shared.append(key)
            if tensor.dtype != other.dtype:
                found.dtypes[key] = _header(tensor), _header(other)
    found.only_b = {key: _header(ref) for key, ref in second.tensors.items() if key not in left}
    found.same = len(shared) - len(found.dtypes)
    if values:
        _compare(found, first, second, {key: left[key] for key in shared}, progress)
    return found


def _header(tensor: Derived) -> Header:
    return Header(tensor.shape, TORCH_NAMES.get(tensor.dtype, tensor.dtype))


def _compare(
    found: Difference,
    first: Checkpoint,
    second: Checkpoint,
    shared: Mapping[str, Derived],
    progress: ProgressOption,
) -> None:
    found.values = {}
    total = sum(tensor.nbytes for tensor in shared.values())
    with ProgressMeter(progress, total, "comparing") as meter:
        # In the order of A's bytes, because disks read fastest from front to back.
        for key in sorted(shared, key=lambda key: _place(shared[key])):
            meter.shard(shared[key].shard)
            apart = distance(first.read_derived(shared[key]), second.read(key))
            if apart.different:
                found.values[key] = apart
            found.compared += 1
            meter.tensor(shared[key].nbytes)


def _place(tensor: Derived) -> tuple[str, int]:
    return next(((ref.shard, ref.span.start) for ref in leaves(tensor)), ("", 0))


def distance(one: torch.Tensor, other: torch.Tensor) -> ValueDifference:
    """Return how much two tensors of one shape differ."""
    import torch

    different, largest = 0, 0.0
    sums = torch.zeros(3, dtype=torch.float64)
    for left, right in zip(_blocks(one), _blocks(other), strict=True):
        if left.dtype == right.dtype and _equal_bytes(left, right):
            wide = _wide(left)
            square = (wide.abs() ** 2).sum().to(torch.float64)
            sums += torch.stack([square, square, square])
            continue
        x, y = _wide(left), _wide(right)
        apart = (x - y).abs()
        alike = (x == y) | (x.isnan() & y.isnan())
        different += int((~alike).sum())
        apart[alike] = 0
        worst = float(apart.max()) if apart.numel() else 0.0
        largest = worst if math.isnan(worst) or worst > largest else largest
        product = (x * y.conj()).real if x.is_complex() or y.is_complex() else x * y
        sums += torch.stack([product.sum(), (x.abs() ** 2).sum(), (y.abs() ** 2).sum()]).to(torch.float64)
    return ValueDifference(different, largest, _cosine(*sums.tolist()))


def _cosine(product: float, one: float, other: float) -> float | None:
    value = product / math.sqrt(one * other) if one and other and math.isfinite(one * other) else math.nan
    return value if math.isfinite(value) else None


def _blocks(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    # A single element may have any stride, which `view` would keep.
    flat = tensor.detach().contiguous().as_strided((tensor.numel(),), (1,))
    return tuple(flat[at : at + _BLOCK] for at in range(0, flat.numel(), _BLOCK))


def _equal_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    import torch

    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


_FOUR_BITS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _wide(block: torch.Tensor) -> torch.Tensor:
    import torch

    if block.is_complex():
        return block.to(torch.complex128)
    if str(block.dtype) == "torch.float4_e2m1fn_x2":  # torch converts none of them; the low half comes first
        raw = block.view(torch.uint8)
        halves = torch.stack([raw & 15, raw >> 4], -1).reshape(-1).long()
        return torch.tensor([*_FOUR_BITS, *(-value for value in _FOUR_BITS)], dtype=torch.float64)[halves]
    return block.to(torch.float64)
