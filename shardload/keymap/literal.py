"""Literal rules: what a rule that needs its model made of a checkpoint, said in rules that a file can hold.

The tensors before and after are known as views of stored ones. Each is taken apart: which stored tensors are cut, which
are turned, and which are put together. The rules that are found are tried on the headers, and have to give the same.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from shardload.errors import NoInverseError, Wording
from shardload.keymap.derived import Derived, Filled, Joined, leaves
from shardload.keymap.drop import Drop
from shardload.keymap.rename import Rename
from shardload.keymap.split import Cat, Split
from shardload.keymap.stack import Stack, Unstack
from shardload.keymap.transpose import Transpose
from shardload.keymap.views import contiguous_strides, strides_of
from shardload.tensor_ref import DTYPE_BITS, TensorRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from shardload.keymap.rule import Rule

_CURE = Wording("load it with its class, and save the model under its own names: {key_map}", key_map={})


def literal_rules(
    stored: Mapping[str, TensorRef],
    made: Mapping[str, Derived],
    apply: Callable[[tuple[Rule, ...]], Mapping[str, Derived]],
) -> tuple[Rule, ...]:
    """Return rules that make `made` of `stored`, by template where they are alike; `apply` tries them.

    Raises NoInverseError, by name, for tensors whose elements are put in another order than cuts, transposes and joins
    can: no rule of a file says that.
    """
    plain = _Writing(stored).rules(made)
    wanted = {name: _plain(tensor) for name, tensor in made.items()}
    for rules in (by_template(plain), plain):
        try:
            got = apply(rules)
        except ValueError:  # a template takes more than it was made for
            continue
        if got.keys() == wanted.keys() and all(_plain(got[name]) == wanted[name] for name in wanted):
            return rules
    raise NoInverseError("rules of a map's file give other tensors than the class", cure=_CURE)


def _plain(tensor: Derived | Filled) -> Derived | Filled:
    """Return a tensor without joins of one part, which ask for a copy."""
    while isinstance(tensor, Joined) and len(tensor.parts) == 1:
        tensor = tensor.parts[0]
    return tensor


@dataclass
class _Writing:
    """The rules so far: cuts and turns of stored tensors, then joins, with renames between; drops last."""

    stored: Mapping[str, TensorRef]
    cuts: list[Rule] = field(default_factory=list)
    turns: list[Rule] = field(default_factory=list)
    joins: list[Rule] = field(default_factory=list)
    renames: dict[str, str] = field(default_factory=dict)
    names: dict[TensorRef, str] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)

    def rules(self, made: Mapping[str, Derived]) -> tuple[Rule, ...]:
        """Return the rules that make these tensors."""
        used: dict[str, list[TensorRef]] = defaultdict(list)
        for tensor in made.values():
            for ref in leaves(tensor):
                used[ref.name].append(ref)
        for name, refs in used.items():
            self._cut(name, refs)
        if not self.odd:
            for key, tensor in made.items():
                self._make(key, _plain(tensor))
        if self.odd:
            more = f" and {len(self.odd) - 5} more" if len(self.odd) > 5 else ""
            raise NoInverseError(
                "the class puts elements in an order that no rule of a map's file can say",
                where=", ".join(self.odd[:5]) + more,
                cure=_CURE,
            )
        drops = [Drop(name) for name in self.stored if name not in used]
        return (*drops, *self.cuts, *self.turns, *_in_order(self.renames), *self.joins)

    def _cut(self, name: str, refs: list[TensorRef]) -> None:
        """Name the views of one stored tensor that results are made of, and write the rules that make them."""
        whole = self.stored[name]
        if len(refs) == 1 and refs[0].numel == whole.numel:
            turn = _turn(refs[0], whole)
            if turn is None:
                self.odd.append(name)
            elif turn:
                self.turns.append(Transpose(name, turn))
            self.names[refs[0]] = name
            return
        refs = sorted(set(refs), key=lambda ref: ref.span)
        dim = _dimension(refs, whole)
        if dim is None or len(refs) < 2:
            self.odd.append(name)
            return
        if all(len(ref.shape) < len(whole.shape) for ref in refs):
            targets = tuple(f"{name}.{number}" for number in range(len(refs)))
            self.cuts.append(Unstack(name, f"{name}.{{n}}", dim, len(refs)))
        else:
            targets = tuple(f"{name}.part{number}" for number in range(len(refs)))
            self.cuts.append(Split(name, targets, tuple(_size(ref, whole, dim) for ref in refs), dim))
        self.names.update(zip(refs, targets, strict=True))

    def _make(self, key: str, tensor: Derived | Filled) -> None:
        """Write the rules that make one tensor under its name."""
        if isinstance(tensor, TensorRef):
            name = self.names[tensor]
            if self._is_larger(tensor):
                self.renames[name] = f"{key}.0"
                dims = [dim for dim, size in enumerate(tensor.shape) if size == 1]
                self.joins.append(Stack(f"{key}.{{n}}", key, dims[-1], 1))
            elif name != key:
                self.renames[name] = key
        elif isinstance(tensor, Joined) and tensor.parts:
            self._join(key, tensor)
        else:
            self.odd.append(key)

    def _join(self, key: str, tensor: Joined) -> None:
        parts, names, stacked = tensor.parts, [], []
        for number, part in enumerate(parts):
            larger = isinstance(part, TensorRef) and self._is_larger(part)
            stacked.append(larger and part.shape[tensor.dim] == 1)
            if isinstance(part, TensorRef) and (stacked[-1] or not larger):
                names.append(self.names[part])
            else:
                names.append(f"{key}.part{number}")
                self._make(names[-1], part)
        if all(stacked):
            self.joins.append(Stack(self._numbered(key, names), key, tensor.dim, len(parts)))
        elif any(stacked):
            self.odd.append(key)
        else:
            sizes = tuple(part.shape[tensor.dim] for part in parts)
            self.joins.append(Cat(tuple(names), key, tensor.dim, sizes))

    def _is_larger(self, part: TensorRef) -> bool:
        """Whether a part is a stored tensor with one more dimension, of size 1."""
        whole = self.stored.get(self.names[part])
        return whole is not None and len(part.shape) == len(whole.shape) + 1

    def _numbered(self, key: str, names: list[str]) -> str:
        """Return a template that numbers these names in their order, which get such names where they have none."""
        segments = [name.split(".") for name in names]
        for place in range(len(segments[0])):
            template = ".".join((*segments[0][:place], "{n}", *segments[0][place + 1 :]))
            if names == [template.replace("{n}", str(number)) for number in range(len(names))]:
                return template
        self.renames.update((name, f"{key}.{number}") for number, name in enumerate(names))
        return f"{key}.{{n}}"


def _turn(ref: TensorRef, whole: TensorRef) -> tuple[int, int] | tuple[()] | None:
    """Return the two dimensions that a view of a whole tensor exchanges, () for none; None for another order."""
    shape = tuple(size for size in ref.shape if size != 1)
    sizes = tuple(size for size in whole.shape if size != 1)
    strides = tuple(step for step, size in zip(strides_of(ref), ref.shape, strict=True) if size != 1)
    if shape == sizes and strides == contiguous_strides(sizes):
        return ()
    if len(ref.shape) != len(whole.shape):
        return None
    plain = contiguous_strides(whole.shape)
    for first in range(len(plain)):
        for second in range(first + 1, len(plain)):
            order = list(range(len(plain)))
            order[first], order[second] = second, first
            turned = tuple(whole.shape[dim] for dim in order), tuple(plain[dim] for dim in order)
            if turned == (ref.shape, strides_of(ref)):
                return first, second
    return None


def _dimension(refs: list[TensorRef], whole: TensorRef) -> int | None:
    """Return the dimension along which views cover a whole tensor, one behind the other."""
    plain = contiguous_strides(whole.shape)
    width = DTYPE_BITS[whole.dtype] // 8
    for dim, step in enumerate(plain):
        sizes = [_size(ref, whole, dim) for ref in refs]
        if 0 in sizes or sum(sizes) != whole.shape[dim]:
            continue
        starts = [sum(sizes[:place]) * step * width for place in range(len(sizes))]
        if [ref.span.start - whole.span.start for ref in refs] == starts:
            return dim
    return None


def _size(ref: TensorRef, whole: TensorRef, dim: int) -> int:
    """Return how many entries of a dimension a view has, all of the others being whole; 0 for any other view."""
    plain = contiguous_strides(whole.shape)
    if len(ref.shape) == len(whole.shape) - 1:
        rest = (*whole.shape[:dim], *whole.shape[dim + 1 :]), (*plain[:dim], *plain[dim + 1 :])
        return int(rest == (ref.shape, strides_of(ref)))
    if len(ref.shape) != len(whole.shape):
        return 0
    wanted = (*whole.shape[:dim], ref.shape[dim], *whole.shape[dim + 1 :])
    if ref.shape != wanted:
        return 0
    same = all(a == b for a, b, size in zip(strides_of(ref), plain, wanted, strict=True) if size != 1)
    return ref.shape[dim] if same else 0


def _in_order(renames: Mapping[str, str]) -> list[Rule]:
    """Return renames such that none takes a name that another one gives; a circle goes by way of other names."""
    left = dict(renames)
    rules: list[Rule] = []
    while left:
        free = [old for old, new in left.items() if new not in left]
        rules += [Rename(old, left.pop(old)) for old in free]
        if not free:
            old = next(iter(left))
            rules.append(Rename(old, f"{old}.moved"))
            left[f"{old}.moved"] = left.pop(old)
    return rules


def by_template(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return rules with `{}` for their first number, one for those that differ in nothing else."""
    found: dict[Rule, Rule] = {}
    count: dict[Rule, int] = defaultdict(int)
    for rule in rules:
        general = _general(rule)
        found.setdefault(general, rule)
        count[general] += 1
    return tuple(general if count[general] > 1 else rule for general, rule in found.items())


def _general(rule: Rule) -> Any:
    texts: dict[str, Any] = {}
    numbers = set()
    for item in fields(rule):  # type: ignore[arg-type]
        value = getattr(rule, item.name)
        several = value if isinstance(value, tuple) else (value,)
        if all(isinstance(text, str) for text in several):
            made = [_first_number(text) for text in several]
            numbers |= {number for _, number in made}
            texts[item.name] = tuple(text for text, _ in made) if several is value else made[0][0]
    return replace(rule, **texts) if len(numbers) == 1 and None not in numbers else rule  # type: ignore[type-var]


def _first_number(text: str) -> tuple[str, str | None]:
    segments = text.split(".")
    place = next((place for place, segment in enumerate(segments) if segment.isdecimal()), None)
    if place is None:
        return text, None
    return ".".join((*segments[:place], "{}", *segments[place + 1 :])), segments[place]
