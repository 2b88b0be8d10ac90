"""transpose: two dimensions exchanged, as between the weights of GPT-2's Conv1D and of Linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from shardload.errors import UsageError
from shardload.keymap.derived import Derived, transposed
from shardload.keymap.key_template import key_template
from shardload.keymap.rule import RuleBase, Step, dimension, shown

if TYPE_CHECKING:
    from shardload.keymap.rule import Table


@dataclass(frozen=True)
class Transpose(RuleBase):
    """Exchange two dimensions of the tensors that match; their names stay."""

    op: ClassVar[str] = "transpose"
    source: str
    dims: tuple[int, int] = (-2, -1)

    def __post_init__(self) -> None:
        key_template(self.source).require()
        if not isinstance(self.dims, (list, tuple)) or len(self.dims) != 2:
            raise UsageError("a transpose takes two dimensions", where=repr(self.dims)[:200])
        object.__setattr__(self, "dims", tuple(dimension(dim) for dim in self.dims))

    @property
    def templates(self) -> tuple[str, ...]:
        """The template of its source."""
        return (self.source,)

    def transform(self, table: Table) -> Step:
        """Return the table with these tensors transposed."""
        source = key_template(self.source)
        made: dict[str, list[tuple[str, Derived]]] = {}
        faults: list[str] = []
        for name, tensor in table.items():
            if source.match(name) is None:
                continue
            rank = len(tensor.shape)
            if not all(-rank <= dim < rank for dim in self.dims):
                faults.append(f"{name} {shown(tensor.shape)} lacks the dimensions {shown(self.dims)}")
                continue
            first, second = (dim % rank for dim in self.dims)
            made[name] = [(name, cast("Derived", transposed(tensor, first, second)))]
        self._refuse(faults)
        return Step(table, made, made, list(made))

    def invert(self) -> Transpose:
        """Return the rule itself: it undoes itself."""
        return self
