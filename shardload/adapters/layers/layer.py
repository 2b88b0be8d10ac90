"""The layer that carries adapters, and what every kind of layer shares. A new kind is one new file beside this one.

Three things meet in one layer of the model:

- the *kind* (`LayerKind`): which modules it fits, and which shapes A and B have there;
- the *host* (`LoraLayer`): the class that the module gets while an adapter is attached, whose forward runs the
  module's own and then every active adapter's;
- one *term* for each adapter and base tensor (`LoraTerm`): the maths.
"""

from __future__ import annotations

import copyreg
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from shardload.adapters.layers.term import DORA_CACHE, Factors, LoraTerm
from shardload.errors import UnsupportedError, Wording

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from typing_extensions import Self

    from shardload.adapters.adapter import LoraEntry
    from shardload.adapters.layers.term import Shape
    from shardload.adapters.switch import Switch

LORA_PARTS = ("lora_A", "lora_B", "lora_magnitude_vector")
"""The containers that a host adds to its module, under PEFT's names: one child for each adapter. The last is DoRA's."""

LAYER_ATTRIBUTES = (*LORA_PARTS, "lora_terms", "lora_switch", "lora_base")
"""Attributes of an adapted layer, which its own class must not have."""


class Factor(nn.Module):
    """The weight of A or B, and the bias of B. Not an nn.Linear, so that no tool adapts or quantises it."""

    of_an_adapter = True  # no checkpoint of the base has to fill it

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        # Straight into the table: thousands are made at once, and nn.Module's checks are half of what one costs.
        self._parameters.update(weight=weight, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x @ weight.T (+ bias), in the weight's dtype."""
        return functional.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Show shape and dtype, as `repr(model)` does for other layers."""
        return f"{tuple(self.weight.shape)}, {self.weight.dtype}, bias={self.bias is not None}"


class NoLeafError(UnsupportedError, AttributeError):
    """torch's ColwiseParallel and RowwiseParallel take a layer for a leaf, and this one has adapters."""

    def __init__(self) -> None:
        super().__init__(
            "parallelize_module can't cut a layer that has an adapter",
            cure=Wording("let from_pretrained do it: {adapter}, {tp_plan}", adapter=..., tp_plan=...),
        )


class OfAdapters(nn.ModuleDict):
    """One part of the adapters of a layer: a child for each adapter."""

    of_an_adapter = True

    def __getattr__(self, name: str) -> Any:
        """Return a child, as any module does. Raises NoLeafError for what a Linear has."""
        if name in ("weight", "bias"):
            raise NoLeafError
        return super().__getattr__(name)


class LoraLayer(nn.Module):
    """A layer that adds every active adapter's term to its own output.

    It is never constructed: `adapt` gives an existing module a subclass of the kind's host and of the module's own
    class. The own class's forward still computes the base output. As in PEFT, the adapter computes in its own dtype
    and the result has the dtype of the base output.
    """

    lora_base: ClassVar[type[nn.Module]]
    lora_host: ClassVar[type[LoraLayer]]
    lora_A: nn.ModuleDict  # noqa: N815 - PEFT's name: it is part of the keys in state_dict()
    lora_B: nn.ModuleDict  # noqa: N815
    lora_terms: dict[str, LoraTerm]
    lora_switch: Switch

    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: A002
        """Return the base layer's output plus the active adapters' (shape and dtype as the base layer's)."""
        out: torch.Tensor = super().forward(input, *args, **kwargs)
        dtype = out.dtype
        terms = self.lora_terms
        choice = self.lora_switch.choice
        if choice.rows is not None:
            out = choice.rows.add(self, input, out)
        else:
            for name, weight in choice.weights.items():
                term = terms.get(name)
                if term is not None:
                    # The sum is taken in the wider dtype and rounded once, below.
                    out = term.add(self, name, weight, input, out)
        return out if out.dtype == dtype else out.to(dtype)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter of the layer's own. Raises NoLeafError for one of an adapter."""
        if name.startswith(LORA_PARTS):
            raise NoLeafError
        super().register_parameter(name, param)

    def lora_changes(self, name: str) -> Iterator[tuple[nn.Module, LoraTerm, Factors]]:
        """Yield the owning module, the term and the factors for each base tensor that an adapter changes here."""
        if name in self.lora_terms:
            yield self, self.lora_terms[name], self.lora_factors(name)

    def lora_factors(self, name: str) -> Factors:
        """Return the tensors of one adapter in this layer."""
        down: Any = self.lora_A[name]
        up: Any = self.lora_B._modules.get(name)
        if up is None:
            return Factors(down.weight, down.weight.new_empty(0))
        magnitudes: Any = self._modules.get("lora_magnitude_vector")
        magnitude = magnitudes[name].weight if magnitudes is not None and name in magnitudes else None
        return Factors(down.weight, up.weight, up.bias, magnitude)

    def lora_add(self, name: str, term: LoraTerm, factors: Factors) -> None:
        """Add one adapter's factors, which are parameters, to the layer."""
        self.lora_A._modules[name] = Factor(factors.a)  # type: ignore[arg-type]
        if factors.b.numel():
            self.lora_B._modules[name] = Factor(factors.b, factors.bias)  # type: ignore[arg-type]
        if factors.magnitude is not None:
            if "lora_magnitude_vector" not in self._modules:
                self.lora_magnitude_vector = OfAdapters()
            self.lora_magnitude_vector[name] = Factor(factors.magnitude)  # type: ignore[arg-type]
        self.lora_terms[name] = term

    def lora_parameters(self, name: str) -> Iterator[nn.Parameter]:
        """Yield the parameters that one adapter owns in this layer."""
        for part in LORA_PARTS:
            holder: Any = self._modules.get(part)
            if holder is not None and name in holder:
                yield from holder[name].parameters()

    def train(self, mode: bool = True) -> Self:
        """Set the mode, as any module does, and call the switch's `follow` (merge_on_eval)."""
        super().train(mode)
        if self.lora_switch.follow is not None:
            self.lora_switch.follow(mode=mode)
        return self

    def lora_drop(self, name: str) -> None:
        """Remove one adapter's factors from the layer; after the last one the layer has its own class again."""
        self.lora_remove(name)
        if not self.lora_terms:
            restore(self)

    def lora_remove(self, name: str) -> None:
        """Remove one adapter's factors from the layer, which keeps its adapted class."""
        for part in LORA_PARTS:
            holder: Any = self._modules.get(part)
            if holder is not None:
                holder._modules.pop(name, None)
        self.lora_terms.pop(name, None)
        self.__dict__.get(DORA_CACHE, {}).pop(name, None)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy by host and own class: the class made of both can't be imported by name."""
        reduced = super().__reduce_ex__(max(int(protocol), 2))
        if isinstance(reduced, tuple) and reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_new, (self.lora_host, self.lora_base, *reduced[1][1:]), *reduced[2:])
        return reduced


@dataclass(frozen=True)
class Reading:
    """How a stored layer fits a module: its term, and for each part the stored shape that fits.

    `shapes` maps "a", "b", "bias" and "magnitude" to the shape that the stored tensor must have, `forms` to its shape
    in memory where that differs. `transposed`: "a" and "b" are stored with their two dimensions swapped. `note` is a
    line for the report.
    """

    term: LoraTerm
    shapes: Mapping[str, Shape]
    forms: Mapping[str, Shape] = field(default_factory=dict)
    transposed: bool = False
    note: str = ""


class LayerKind:
    """One kind of layer: which modules it fits, how stored factors fit them, which host runs them.

    A kind says its `name` (shown to people: "Linear"), the class of its `host`, the classes of its `modules`, and
    gives `shapes` and `term`, or a `read` of its own.
    """

    name: ClassVar[str]
    host: ClassVar[type[LoraLayer]]
    modules: ClassVar[tuple[type[nn.Module], ...]] = (nn.Module,)

    def host_of(self, module: nn.Module) -> type[LoraLayer]:
        """Return the class that this module becomes a subclass of when it is adapted."""
        return self.host

    def fits(self, module: nn.Module, entry: LoraEntry | None = None) -> bool:
        """Return whether a module, and the stored entry for it if there is one, are of this kind."""
        return isinstance(module, self.modules)

    def unfit(self, module: nn.Module, entry: LoraEntry) -> str | None:
        """Return why a module of this kind can't take this entry ("is …"), or None."""
        return None

    def read(self, module: nn.Module, entry: LoraEntry) -> Reading:
        """Return the term for a stored layer, and the shapes that its tensors must have."""
        rank = entry.rank_by_shapes()
        shapes = self.shapes(module, rank)
        if entry.columns:
            shapes = {part: shape[::-1] if part in "ab" else shape for part, shape in shapes.items()}
        term = self.term(module, rank, entry.scaling.of(rank), entry.dropout)
        return Reading(term, shapes, transposed=entry.columns)

    def shapes(self, module: nn.Module, rank: int) -> dict[str, Shape]:
        """Return the shapes of "a" and "b" for an adapter of this rank, of "bias", and of "magnitude" for DoRA.

        A part that is not defined for the kind is left out; {} where a fresh adapter is not defined for it.
        """
        return {}

    def term(self, module: nn.Module, rank: int, scale: float, dropout: float) -> LoraTerm:
        """Return the term of an adapter of this rank."""
        raise NotImplementedError

    def unmergeable(self, module: nn.Module, term: LoraTerm) -> str | None:
        """Return why a term can't be folded into this module's base tensor, or None.

        A weight that is stored in fewer bits has no room for a delta.
        """
        weight = getattr(module, term.attribute, None)
        if isinstance(weight, torch.Tensor) and weight.is_floating_point():
            return None
        return f"is a quantised {type(module).__name__}: merge into the full-precision base instead"


def lora_class(host: type[LoraLayer], base: type[nn.Module]) -> type[LoraLayer]:
    """Return the adapted class for modules of class `base`; the same class every time."""
    if vars(host).get("lora_base") is base:
        return host
    made = _CLASSES.get((host, base))
    if made is None:
        names = {
            "__module__": __name__,
            "__doc__": host.__doc__,
            "lora_base": base,
            "lora_host": host,
        }
        made = types.new_class(f"Lora{base.__name__}", (host, base), {}, lambda space: space.update(names))
        _CLASSES[host, base] = made
    return made


_CLASSES: dict[tuple[type[LoraLayer], type[nn.Module]], type[LoraLayer]] = {}


def _new(host: type[LoraLayer], base: type[nn.Module], *args: Any) -> nn.Module:
    """Make an empty layer for pickle and copy to fill."""
    cls = lora_class(host, base)
    return cls.__new__(cls, *args)


def adapt(module: nn.Module, host: type[LoraLayer], switch: Switch) -> LoraLayer:
    """Give a module its adapted class, in place, and return the same object. An adapted module stays as it is."""
    if isinstance(module, LoraLayer):
        return module
    try:
        module.__dict__.update(lora_terms={}, lora_switch=switch)
        module.__class__ = lora_class(host, type(module))
        module._modules.update(lora_A=OfAdapters(), lora_B=OfAdapters())
    except BaseException as error:
        restore(module)
        if not isinstance(error, TypeError):
            raise
        raise UnsupportedError(
            f"layers of class {type(module).__name__} can't be adapted in place: {error}"
        ) from error
    return module  # type: ignore[return-value]


def restore(layer: nn.Module) -> None:
    """Restore a layer's own class, and remove everything that `adapt` added, also where it was interrupted."""
    if isinstance(layer, LoraLayer):
        layer.__class__ = layer.lora_base  # type: ignore[assignment]
    for name in LORA_PARTS:
        layer._modules.pop(name, None)
    for name in ("lora_terms", "lora_switch", DORA_CACHE):
        layer.__dict__.pop(name, None)
