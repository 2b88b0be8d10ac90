"""LoraTerm: what one adapter does to one tensor of a layer, as a pure function of its factors A and B.

`add` changes the layer's output, `delta` gives the change of the base tensor, and both say the same. Merging uses
`delta` and `changed`; neither needs a live layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch

from shardload.placement.offloading import stamp_of

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Factors:
    """The tensors of one adapter on one base tensor, in the shapes that the kind of the layer says.

    `bias` is the bias of B, `magnitude` DoRA's vector; None where the adapter has none. `b` is empty for a term
    that has no B.
    """

    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None

    def to(self, dtype: torch.dtype) -> Factors:
        """Return the factors in another dtype, usually fp32 or fp64 for `delta`."""
        parts = (self.a, self.b, self.bias, self.magnitude)
        return Factors(*(None if part is None else part.to(dtype) for part in parts))  # type: ignore[arg-type]


class AdaptedLayer(Protocol):
    """What a term sees of the layer whose output it changes."""

    training: bool
    lora_A: nn.ModuleDict  # noqa: N815 - PEFT's name
    lora_B: nn.ModuleDict  # noqa: N815
    lora_terms: dict[str, LoraTerm]
    _modules: dict[str, nn.Module | None]

    def lora_factors(self, name: str) -> Factors:
        """Return the tensors of one adapter in this layer."""


@dataclass(frozen=True)
class LoraTerm:
    """What one adapter does to one tensor of a layer, beside its weights: `scale` multiplies B @ A.

    `attribute` is the base tensor's name in its module; `dropout` is applied to the input of A in training.
    `dora_axis` is the dimension of the base tensor that a DoRA magnitude runs along: 0 means that a block of rows
    can be changed without the others, 1 that the norms need a pass over all rows first, None that DoRA is not
    defined. `adds_bias`: the bias of B, times the scale, is added to the module's.
    """

    rank: int
    scale: float
    dropout: float = 0.0
    attribute: str = "weight"

    dora_axis: ClassVar[int | None] = None
    adds_bias: ClassVar[bool] = True

    def delta(self, factors: Factors, shape: Shape, rows: slice | None = None) -> torch.Tensor:
        """Return scale * (B @ A) as a tensor of the base's `shape`, in the factors' dtype; DoRA not applied.

        With `rows`, only those rows (dimension 0) of it: shape (rows, *shape[1:]). No tensor larger than the result
        is made.
        """
        raise NotImplementedError

    def add(
        self, layer: AdaptedLayer, name: str, weight: float, x: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        """Return `out` plus `weight` times this adapter's change of the layer's output for the input `x`."""
        raise NotImplementedError

    def changed(
        self,
        base: torch.Tensor,
        factors: Factors,
        weight: float = 1.0,
        rows: slice | None = None,
        shape: Shape | None = None,
        norm: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the base tensor as this adapter at `weight` changes it, in the dtype of `base` and the factors.

        `base` is the whole tensor, or its `rows` of a tensor of `shape`. With DoRA, `norm` are the norms of
        `base + delta` along `dora_axis`, from `norm_squares`; they are computed here when it is None, which for
        `dora_axis` 1 needs the whole tensor.
        """
        delta = self.delta(factors, tuple(base.shape) if shape is None else shape, rows)
        if factors.magnitude is None:
            return base + (delta if weight == 1.0 else weight * delta)
        if norm is None:
            norm = self.norm_squares(base, delta).sqrt()
        factor = self.along_axis(factors.magnitude.reshape(-1), norm, base.dim(), rows)
        full = factor * (base + delta)
        return full if weight == 1.0 else base + weight * (full - base)

    def stored(self, factors: Factors) -> tuple[int, dict[str, torch.Tensor]]:
        """Return the rank and the tensors as PEFT stores them, by the ends of their keys.

        The scale is this term's, so `lora_alpha` is scale * rank (scale * sqrt(rank) with rsLoRA).
        """
        tensors = {"lora_A.weight": factors.a, "lora_B.weight": factors.b}
        if factors.bias is not None:
            tensors["lora_B.bias"] = factors.bias
        if factors.magnitude is not None:
            tensors["lora_magnitude_vector"] = factors.magnitude
        return self.rank, tensors

    def norm_squares(self, base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        """Return the squared norms of `base + delta` along `dora_axis`; for axis 1, blocks of rows add up."""
        axis = 0 if self.dora_axis is None else self.dora_axis
        others = [dim for dim in range(base.dim()) if dim != axis]
        return (base + delta).square().sum(dim=others)

    def along_axis(
        self, magnitude: torch.Tensor, norm: torch.Tensor, dims: int, rows: slice | None
    ) -> torch.Tensor:
        """Return magnitude / norm, shaped to multiply the base tensor (or its rows) along `dora_axis`."""
        axis = 0 if self.dora_axis is None else self.dora_axis
        if axis == 0 and rows is not None:
            magnitude = magnitude[rows]
            norm = norm if norm.shape == magnitude.shape else norm[rows]
        return (magnitude / norm).view([-1 if dim == axis else 1 for dim in range(dims)])


DORA_CACHE = "lora_dora_factors"
"""The attribute of a layer that keeps magnitude / norm of each adapter, with the versions of what it came from."""


def dora_factor(layer: AdaptedLayer, name: str, term: LoraTerm, base: torch.Tensor) -> torch.Tensor:
    """Return magnitude / ‖base + delta‖ of one adapter, a vector along the term's `dora_axis`.

    The norm is a constant for gradients (DoRA, arXiv 2402.09353, section 4.3). Outside training it is kept until
    one of the tensors that it depends on changes: computed at every call it costs many times the layer itself.
    """
    factors = layer.lora_factors(name)
    magnitude = factors.magnitude
    if magnitude is None:
        raise AssertionError(name)
    inputs = (base, factors.a, factors.b, magnitude)
    stamp = tuple(map(stamp_of, inputs))
    cache = layer.__dict__.setdefault(DORA_CACHE, {})
    keep = not (torch.is_grad_enabled() and magnitude.requires_grad)
    if keep and name in cache and cache[name][0] == stamp:
        kept: torch.Tensor = cache[name][1]
        return kept
    with torch.no_grad():
        dtype = torch.promote_types(base.dtype, factors.a.dtype)
        wide = Factors(factors.a.to(dtype), factors.b.to(dtype))
        whole = base.to(dtype)
        norm = term.norm_squares(whole, term.delta(wide, tuple(base.shape))).sqrt()
    factor = magnitude.reshape(-1) / norm
    if keep:
        cache[name] = (stamp, factor.detach())
    return factor


def whole_beside(x: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor | None:
    """Return a factor as a tensor that is whole on each rank, where the layer's input lies over ranks and it does not.

    Tensor parallelism by rows cuts the layer's own parameters alone.
    """
    mesh = getattr(x, "device_mesh", None)
    if mesh is None or factor is None or hasattr(factor, "device_mesh"):
        return factor
    from torch.distributed.tensor import DTensor, Replicate

    whole: torch.Tensor = DTensor.from_local(factor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole
