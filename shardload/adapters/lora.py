"""The LoRA linear layer: the user's own nn.Linear object, with its class changed while an adapter is attached."""

from __future__ import annotations

import copyreg
import types
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from shardload.errors import UnsupportedError


@dataclass
class Switch:
    """Which adapters a model runs with: name to weight, in the order in which they are added.

    One object is shared by all adapted layers of a model, so that switching is one assignment.
    """

    active: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LoraTerm:
    """What one adapter does in one layer, beside its weights: `scale` multiplies B @ A, dropout is before A."""

    rank: int
    scale: float
    dropout: float = 0.0


class Factor(nn.Module):
    """The weight of A or B, and B's bias if it has one. It is no nn.Linear: nothing should adapt or quantise it."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x @ weight.T (+ bias), in the weight's dtype."""
        return functional.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Show shape and dtype, as `repr(model)` does for other layers."""
        return f"{tuple(self.weight.shape)}, {self.weight.dtype}, bias={self.bias is not None}"


class LoraLinear(nn.Linear):
    """A linear layer that adds `weight * scale * B(A(dropout(x)))` of every active adapter to its own output.

    It is never constructed: `adapt` gives an existing layer this class, or a subclass of this and of the layer's
    own class, whose forward is still the one that computes the base output. As in PEFT, the adapter computes in
    its own dtype and the result has the dtype of the base output.
    """

    lora_base: ClassVar[type[nn.Linear]] = nn.Linear
    lora_A: nn.ModuleDict  # noqa: N815 - PEFT's name: it is part of the keys in state_dict()
    lora_B: nn.ModuleDict  # noqa: N815
    lora_terms: dict[str, LoraTerm]
    lora_switch: Switch

    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: A002
        """Return the base layer's output plus the active adapters' (shape and dtype as the base layer's)."""
        out = super().forward(input, *args, **kwargs)
        dtype = out.dtype
        # Straight from the tables: nn.Module's attribute look-up is a third of what an adapter costs a small layer.
        modules = self._modules
        for name, weight in self.lora_switch.active.items():
            term = self.lora_terms.get(name)
            if term is None:
                continue
            up: Any = modules["lora_B"]._modules[name]  # type: ignore[union-attr]
            down: Any = modules["lora_A"]._modules[name].weight  # type: ignore[union-attr]
            x = input if input.dtype == down.dtype else input.to(down.dtype)
            if term.dropout and self.training:
                x = functional.dropout(x, term.dropout)
            delta = functional.linear(functional.linear(x, down), up.weight, up.bias)
            # The sum is taken in the wider dtype and rounded once, below.
            out = torch.add(out, delta, alpha=term.scale * weight)
        return out if out.dtype == dtype else out.to(dtype)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy by the layer's own class: the class made here can't be imported by name."""
        reduced = super().__reduce_ex__(max(int(protocol), 2))
        if isinstance(reduced, tuple) and reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_new, (self.lora_base, *reduced[1][1:]), *reduced[2:])
        return reduced


LAYER_ATTRIBUTES = ("lora_A", "lora_B", "lora_terms", "lora_switch", "lora_base")
"""Names that an adapted layer has and its own class must not have."""


def lora_class(base: type[nn.Linear]) -> type[LoraLinear]:
    """Return the LoRA class for layers of class `base`; the same class every time."""
    made = _CLASSES.get(base)
    if made is None:
        names = {"__module__": __name__, "__doc__": LoraLinear.__doc__, "lora_base": base}
        made = types.new_class(
            f"Lora{base.__name__}", (LoraLinear, base), {}, lambda space: space.update(names)
        )
        _CLASSES[base] = made
    return made


_CLASSES: dict[type[nn.Linear], type[LoraLinear]] = {nn.Linear: LoraLinear}


def _new(base: type[nn.Linear], *args: Any) -> nn.Linear:
    """Make an empty layer for pickle and copy to fill."""
    cls = lora_class(base)
    return cls.__new__(cls, *args)


def adapt(layer: nn.Linear, switch: Switch) -> LoraLinear:
    """Give a layer its LoRA class, in place, and return the same object. A LoRA layer is returned as it is."""
    if isinstance(layer, LoraLinear):
        return layer
    layer.__dict__.update(lora_terms={}, lora_switch=switch)
    try:
        layer.__class__ = lora_class(type(layer))
    except TypeError as error:
        del layer.lora_terms, layer.lora_switch
        raise UnsupportedError(
            f"layers of class {type(layer).__name__} can't be adapted in place: {error}"
        ) from error
    layer.lora_A = nn.ModuleDict()
    layer.lora_B = nn.ModuleDict()
    return layer  # type: ignore[return-value]


def restore(layer: LoraLinear) -> None:
    """Give a layer its own class back, and take away everything that `adapt` added."""
    layer.__class__ = layer.lora_base  # type: ignore[assignment]
    for name in ("lora_A", "lora_B"):
        layer._modules.pop(name, None)
    for name in ("lora_terms", "lora_switch"):
        layer.__dict__.pop(name, None)


def put_term(layer: LoraLinear, name: str, a: Factor, b: Factor, term: LoraTerm) -> None:
    """Add one adapter's factors to a layer."""
    layer.lora_A[name] = a
    layer.lora_B[name] = b
    layer.lora_terms[name] = term


def drop_term(layer: LoraLinear, name: str) -> None:
    """Take one adapter's factors from a layer; the last one restores the layer's own class."""
    layer.lora_A._modules.pop(name, None)
    layer.lora_B._modules.pop(name, None)
    layer.lora_terms.pop(name, None)
    if not layer.lora_terms:
        restore(layer)
