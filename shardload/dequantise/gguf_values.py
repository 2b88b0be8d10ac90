"""What llama.cpp's converter computed with a tensor, taken back while it is read; and two tensors in turn as one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from shardload.dequantise.scheme import BadValuesError, Scheme, Weight
from shardload.dequantise.stored import reshaped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from shardload.dequantise.scheme import Cut, Shape
    from shardload.tensor_ref import TensorRef


@dataclass(frozen=True)
class Plain(Scheme):
    """Numbers that are stored plain, as float32."""

    label: str = "GGUF"
    is_packed: bool = False

    def cuts(self, rows: range, columns: range) -> Mapping[str, tuple[Cut, ...]]:
        """Return the same rows and columns."""
        return {"numbers": ((0, rows.start, len(rows)), (1, columns.start, len(columns)))}

    def decode(self, parts: Mapping[str, torch.Tensor], rows: range, columns: range) -> torch.Tensor:  # noqa: ARG002
        """Return the numbers."""
        return parts["numbers"].float()


@dataclass(frozen=True)
class Undone(Scheme):
    """Numbers of another scheme, with what the converter did to them taken back."""

    inner: Scheme
    step: str

    @property
    def label(self) -> str:  # type: ignore[override]
        """The name of the other scheme."""
        return self.inner.label

    @property
    def is_packed(self) -> bool:  # type: ignore[override]
        """Whether the other scheme is packed."""
        return self.inner.is_packed

    def window(self, rows: range, columns: range) -> tuple[range, range]:
        """Return the window of the other scheme."""
        return self.inner.window(rows, columns)

    def cuts(self, rows: range, columns: range) -> Mapping[str, tuple[Cut, ...]]:
        """Return the cuts of the other scheme."""
        return self.inner.cuts(rows, columns)

    def decode(self, parts: Mapping[str, torch.Tensor], rows: range, columns: range) -> torch.Tensor:
        """Return the numbers of the model, computed in float32."""
        return _STEPS[self.step](self.inner.decode(parts, rows, columns))


def _less_one(numbers: torch.Tensor) -> torch.Tensor:
    return numbers - 1


def _log_of_minus(numbers: torch.Tensor) -> torch.Tensor:
    """Return the logarithms, rounded from float64: libraries differ in the last bit of float32."""
    if not bool((numbers < 0).all()):
        raise BadValuesError("numbers", "holds numbers that are not below zero")
    return numbers.neg().double().log().float()


_STEPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plus one": _less_one,
    "minus exponential": _log_of_minus,
}


@dataclass(frozen=True)
class Woven(Scheme):
    """Two matrices whose rows take turns: the first row of one, the first of the other, and so on."""

    pair: tuple[Scheme, Scheme]

    @property
    def label(self) -> str:  # type: ignore[override]
        """The names of the two schemes."""
        return " and ".join(dict.fromkeys(scheme.label for scheme in self.pair))

    @property
    def is_packed(self) -> bool:  # type: ignore[override]
        """Whether one of the schemes is packed."""
        return any(scheme.is_packed for scheme in self.pair)

    def window(self, rows: range, columns: range) -> tuple[range, range]:
        """Return whole pairs of rows, and the columns that both schemes need."""
        single = range(rows.start // 2, -(-rows.stop // 2))
        for scheme in (*self.pair, self.pair[0]):  # the first again: the second may have asked for more
            single, columns = scheme.window(single, columns)
        return range(2 * single.start, 2 * single.stop), columns

    def cuts(self, rows: range, columns: range) -> Mapping[str, tuple[Cut, ...]]:
        """Return the cuts of both."""
        single = range(rows.start // 2, rows.stop // 2)
        return {
            f"{place} {role}": cuts
            for place, scheme in enumerate(self.pair)
            for role, cuts in scheme.cuts(single, columns).items()
        }

    def decode(self, parts: Mapping[str, torch.Tensor], rows: range, columns: range) -> torch.Tensor:
        """Return the rows of both in turn."""
        import torch

        single = range(rows.start // 2, rows.stop // 2)
        made = []
        for place, scheme in enumerate(self.pair):
            own = {role[2:]: part for role, part in parts.items() if role.startswith(f"{place} ")}
            try:
                made.append(scheme.decode(own, single, columns))
            except BadValuesError as error:
                raise BadValuesError(f"{place} {error.role}", error.why) from None
        return torch.stack(made, 1).flatten(0, 1)


def plain_weight(ref: TensorRef) -> Weight:
    """Return a tensor that is stored plain as a weight to decode."""
    matrix = reshaped(ref, (prod(ref.shape[:-1]), ref.shape[-1]))
    return Weight(ref.name, Plain(), ref.shape, (("numbers", matrix),))


def undone(weight: Weight, step: str) -> Weight:
    """Return a weight with a step of the converter taken back."""
    return replace(weight, scheme=Undone(weight.scheme, step))


def woven(first: Weight, second: Weight, shape: Shape) -> Weight:
    """Return two weights of one shape as one whose rows are theirs in turn; the model holds it turned."""
    parts = tuple(
        (f"{place} {role}", ref) for place, weight in enumerate((first, second)) for role, ref in weight.parts
    )
    return Weight(first.name, Woven((first.scheme, second.scheme)), shape, parts, turned=True)
