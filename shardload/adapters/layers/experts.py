"""Parameters that a module uses itself: fused experts (three dimensions), or a matrix outside a Linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload.adapters.layers.layer import LayerKind, LoraLayer, Reading
from shardload.adapters.layers.linear import LinearTerm
from shardload.adapters.layers.term import Factors, LoraTerm
from shardload.adapters.layers.weights import changed_weights, weights_replaced

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardload.adapters.adapter import LoraEntry
    from shardload.adapters.layers.term import Shape


@dataclass(frozen=True)
class ExpertsTerm(LoraTerm):
    """A is (experts * rank, in), expert by expert; B is (out, rank * experts), the experts innermost.

    `inputs_first`: the base parameter is (experts, in, out) rather than (experts, out, in).
    """

    inputs_first: bool = False

    def delta(self, factors: Factors, shape: Shape, rows: slice | None = None) -> torch.Tensor:
        """Return scale * (B @ A) expert by expert, for all experts or for the experts `rows`."""
        experts = shape[0]
        a = factors.a.view(experts, -1, factors.a.shape[1])
        b = factors.b.view(factors.b.shape[0], -1, experts).permute(2, 0, 1)
        if rows is not None:
            a, b = a[rows], b[rows]
        product = torch.bmm(a.mT, b.mT) if self.inputs_first else torch.bmm(b, a)
        return product * self.scale


class LoraParameters(LoraLayer):
    """A module with adapters on its own parameters.

    `lora_A[name]` and `lora_B[name]` hold one factor for each adapted parameter, under the parameter's name;
    `lora_terms` has a term "<name>.<parameter>" for each.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output with its parameters changed by the active adapters."""
        with weights_replaced(changed_weights(self)):
            return super(LoraLayer, self).forward(*args, **kwargs)

    def lora_changes(self, name: str) -> Iterator[tuple[nn.Module, LoraTerm, Factors]]:
        """Yield this module, the term and the factors for each parameter that an adapter changes, in their order."""
        for parameter in self._parameters:
            term = self.lora_terms.get(f"{name}.{parameter}")
            if term is not None:
                down: Any = self.lora_A[name]
                up: Any = self.lora_B[name]
                yield self, term, Factors(down[parameter], up[parameter])

    def lora_add(self, name: str, term: LoraTerm, factors: Factors) -> None:
        """Add one adapter's factors for one parameter."""
        if name not in self.lora_A:
            self.lora_A[name] = nn.ParameterDict()
            self.lora_B[name] = nn.ParameterDict()
        down: Any = self.lora_A[name]
        up: Any = self.lora_B[name]
        down[term.attribute], up[term.attribute] = factors.a, factors.b
        self.lora_terms[f"{name}.{term.attribute}"] = term

    def lora_remove(self, name: str) -> None:
        """Take one adapter's factors from the module."""
        for key in [key for key in self.lora_terms if key.partition(".")[0] == name]:
            del self.lora_terms[key]
        super().lora_remove(name)


class Experts(LayerKind):
    """A module's own parameters with two or three dimensions, named by the config's `target_parameters`."""

    name = "parameter of a module (fused experts)"
    host = LoraParameters

    def fits(self, module: nn.Module, entry: LoraEntry | None = None) -> bool:
        """Return whether the entry names such a parameter of the module."""
        if entry is None or not entry.parameters:
            return False
        return any(self._shape(module, name) is not None for name in entry.parameters)

    def unfit(self, module: nn.Module, entry: LoraEntry) -> str | None:
        """Refuse a parameter that is not found, or whose layout is unknown."""
        parameter = self._parameter(module, entry)
        if parameter is None and type(module) is nn.Module:
            return (
                f"has the targeted parameters {', '.join(entry.parameters)}, and neither the headers of the checkpoint "
                "nor the shapes tell which of them this is (load the model and merge in memory)"
            )
        if parameter is None:
            return f"has fewer targeted parameters than the file holds: {', '.join(entry.parameters)}"
        if entry.magnitude is not None or entry.bias is not None:
            return f"has the parameter {parameter!r} adapted, for which DoRA and lora_bias are not defined"
        shape = self._shape(module, parameter) or ()
        if len(shape) == 3 and self._inputs_first(module, entry, shape) is None:
            return (
                f"has square experts in {parameter!r}, whose layout changed with PEFT 0.19, and it is unknown which "
                'it has (the config can, with "peft_version", and the module, with `is_transposed`)'
            )
        return None

    def read(self, module: nn.Module, entry: LoraEntry) -> Reading:
        """Read A (experts * rank, in), B (out, rank * experts)."""
        parameter = self._parameter(module, entry) or ""
        shape = self._shape(module, parameter) or ()
        scaling, _ = entry.stated_for(parameter)
        if len(shape) != 3:
            rank = entry.rank_by_shapes()
            term: LoraTerm = LinearTerm(rank, scaling.of(rank), attribute=parameter)
            return Reading(term, {"a": (rank, shape[1]), "b": (shape[0], rank)})
        first = bool(self._inputs_first(module, entry, shape))
        experts = shape[0]
        rank = max(entry.a.shape[0] // experts, 1) if entry.a.shape else 1
        into, out = (shape[1], shape[2]) if first else (shape[2], shape[1])
        term = ExpertsTerm(rank, scaling.of(rank), attribute=parameter, inputs_first=first)
        shapes = {"a": (experts * rank, into), "b": (out, rank * experts)}
        if not entry.experts_last:
            return Reading(term, shapes)
        return Reading(term, {**shapes, "b": (out, rank, experts)}, forms={"b": shapes["b"]})

    def _shape(self, module: nn.Module, name: str) -> Shape | None:
        parameter = module._parameters.get(name)
        return tuple(parameter.shape) if parameter is not None and parameter.dim() in {2, 3} else None

    def _parameter(self, module: nn.Module, entry: LoraEntry) -> str | None:
        """Return the parameter of an entry, by the order in which PEFT wraps parameters, or by the shapes.

        PEFT wraps them in the module's order, the last one outermost. A module that is made from a checkpoint's headers
        has no such order: there the shapes decide.
        """
        targeted = [name for name in module._parameters if name in entry.parameters]
        if type(module) is nn.Module and len(targeted) > 1:
            fitting = [name for name in targeted if self._could_be(entry, self._shape(module, name) or ())]
            return fitting[0] if len(fitting) == 1 else None
        place = len(targeted) - 1 - entry.depth
        return targeted[place] if place >= 0 else None

    def _could_be(self, entry: LoraEntry, shape: Shape) -> bool:
        """Return whether A and B have the widths of a parameter, transposed or not."""
        widths = {(shape[1], shape[2]), (shape[2], shape[1])} if len(shape) == 3 else {(shape[1], shape[0])}
        return (entry.a.shape[1:], entry.b.shape[:1]) in {((into,), (out,)) for into, out in widths}

    def _inputs_first(self, module: nn.Module, entry: LoraEntry, shape: Shape) -> bool | None:
        """Return whether the parameter is (experts, in, out) for this file; None when that is unknown.

        The shapes of A and B decide, except for square experts: PEFT before 0.19 took every parameter for
        (experts, in, out), later ones only those of a module with `is_transposed`. PEFT before 0.17 adapted none: a
        file of later factors keeps such a version where they were converted from an older file's.
        """
        if shape[1] != shape[2]:
            return entry.a.shape[1:] == shape[1:2] and entry.b.shape[:1] == shape[2:]
        version = entry.peft_version
        if _is_transposed(module) or (version is not None and (0, 17) <= version < (0, 19)):
            return True
        # A module that is made from headers has no `is_transposed`.
        return None if version is None or version < (0, 17) or type(module) is nn.Module else False


def layout_of(module: nn.Module, term: LoraTerm) -> str:
    """Return the release of PEFT from which on, or "before 0.19", a file of these factors is read as they are meant.

    "" where every release reads them alike: only square experts have factors that fit both ways round.
    """
    parameter = module._parameters.get(term.attribute)
    if not isinstance(term, ExpertsTerm) or parameter is None or parameter.shape[1] != parameter.shape[2]:
        return ""
    if _is_transposed(module):
        return ""
    return "before 0.19" if term.inputs_first else "0.19.0"


def _is_transposed(module: nn.Module) -> bool:
    return bool(getattr(module, "is_transposed", False))
