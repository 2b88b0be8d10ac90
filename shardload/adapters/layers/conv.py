"""nn.Conv1d, Conv2d and Conv3d, adapted by PEFT's pair of convolutions or by loralib's pair of matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from shardload.adapters.layers.layer import LayerKind, LoraLayer, Reading
from shardload.adapters.layers.term import LoraTerm, dora_factor
from shardload.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardload.adapters.adapter import LoraEntry
    from shardload.adapters.layers.term import AdaptedLayer, Factors, Shape

_CONVOLUTION: dict[int, Callable[..., torch.Tensor]] = {
    3: functional.conv1d,
    4: functional.conv2d,
    5: functional.conv3d,
}


@dataclass(frozen=True)
class ConvTerm(LoraTerm):
    """A is (rank, in, *kernel), B is (out, rank / groups, 1, …), the base weight (out, in / groups, *kernel).

    A's convolution has the base's stride, padding and dilation, and no groups; B's has the base's groups.
    """

    dora_axis: ClassVar[int | None] = 0

    def delta(self, factors: Factors, shape: Shape, rows: slice | None = None) -> torch.Tensor:
        """Return scale * the kernel of B after A, or some rows of it.

        With groups no such kernel exists; then the result is the tensor of which PEFT takes DoRA's norm.
        """
        rank = factors.a.shape[0]
        grouped = factors.b.shape[1] != rank
        b = factors.b if rows is None or grouped else factors.b[rows]
        kernel = torch.mm(b.reshape(-1, rank), factors.a.reshape(rank, -1)) * self.scale
        if not grouped:
            return kernel.reshape(b.shape[0], *shape[1:])
        whole = kernel.reshape(shape)
        return whole if rows is None else whole[rows]

    def add(
        self, layer: AdaptedLayer, name: str, weight: float, x: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        """Return out + weight * scale * B(A(dropout(x))); with DoRA, out is rescaled too."""
        up: Any = layer.lora_B[name]
        down: Any = layer.lora_A[name]
        base: Any = layer
        x = x if x.dtype == down.weight.dtype else x.to(down.weight.dtype)
        if self.dropout and layer.training:
            x = functional.dropout(x, self.dropout)
        convolve = _CONVOLUTION[down.weight.dim()]
        # PEFT pads A's input with zeros, whatever the base's padding_mode.
        inner = convolve(x, down.weight, None, base.stride, base.padding, base.dilation)
        delta = convolve(inner, up.weight, up.bias, groups=base.groups)
        magnitudes = layer._modules.get("lora_magnitude_vector")
        if magnitudes is None or name not in magnitudes._modules:
            return torch.add(out, delta, alpha=self.scale * weight)
        factor = dora_factor(layer, name, self, base.weight).view(-1, *[1] * (down.weight.dim() - 2))
        if self.dropout and layer.training:
            stored = base.weight.to(x.dtype)
            plain = convolve(x, stored, None, base.stride, base.padding, base.dilation, base.groups)
        else:
            plain = out if base.bias is None else out - base.bias.view(-1, *[1] * (down.weight.dim() - 2))
        return torch.add(out, (factor - 1) * plain + factor * self.scale * delta, alpha=weight)


@dataclass(frozen=True)
class ConvMatrixTerm(LoraTerm):
    """loralib's: A is (rank * k, in * k), B is (out / groups * k, rank * k); B @ A is laid out as the weight."""

    def delta(self, factors: Factors, shape: Shape, rows: slice | None = None) -> torch.Tensor:
        """Return scale * (B @ A) in the weight's shape, or some rows of it."""
        b = factors.b
        if rows is None:
            return (torch.mm(b, factors.a) * self.scale).view(shape)
        # A row of the weight is a run of elements of B @ A, from some row of B @ A to another.
        first, last, _ = rows.indices(shape[0])
        run, width = math.prod(shape[1:]), factors.a.shape[1]
        low, high = first * run // width, -(-last * run // width)
        flat = (torch.mm(b[low:high], factors.a) * self.scale).reshape(-1)
        start = first * run - low * width
        return flat[start : start + (last - first) * run].view(last - first, *shape[1:])

    def add(
        self, layer: AdaptedLayer, name: str, weight: float, x: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        """Return out + weight * the convolution of x with the delta (loralib has no dropout here)."""
        base: Any = layer
        factors = layer.lora_factors(name)
        kernel = self.delta(factors, tuple(base.weight.shape))
        x = x if x.dtype == kernel.dtype else x.to(kernel.dtype)
        return torch.add(out, base._conv_forward(x, kernel, None), alpha=weight)

    def stored(self, factors: Factors) -> tuple[int, dict[str, torch.Tensor]]:
        """Raise UnsupportedError: PEFT's pair of convolutions can't hold loralib's pair of matrices."""
        raise UnsupportedError(
            "PEFT's format has no place for a convolution that was adapted with loralib",
            cure="keep the loralib file, or merge the adapter",
        )


class LoraConv(LoraLayer):
    """A convolution with adapters."""


class Conv(LayerKind):
    """nn.Conv1d, Conv2d, Conv3d and their subclasses; not transposed convolutions."""

    name = "Conv"
    host = LoraConv
    modules = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def unfit(self, module: nn.Module, entry: LoraEntry) -> str | None:
        """Refuse a rank that the groups do not divide, and DoRA where it is not defined."""
        conv: Any = module
        if len(entry.a.shape) == 2 and entry.magnitude is not None:
            return "is a convolution, for which loralib has no DoRA"
        if len(entry.a.shape) != 2 and entry.a.shape and entry.a.shape[0] % conv.groups:
            return (
                f"is a convolution with groups = {conv.groups}, and rank {entry.a.shape[0]} is not a multiple"
            )
        return None

    def read(self, module: nn.Module, entry: LoraEntry) -> Reading:
        """Read PEFT's convolutions, or loralib's matrices where A has two dimensions."""
        conv: Any = module
        if len(entry.a.shape) == 2:
            size = conv.kernel_size[0]
            rank = max(entry.a.shape[0] // size, 1)
            shapes = {
                "a": (rank * size, conv.in_channels * size),
                "b": (conv.out_channels // conv.groups * size, rank * size),
            }
            return Reading(ConvMatrixTerm(rank, entry.scaling.of(rank)), shapes, note="loralib's convolution")
        rank = entry.rank_by_shapes()
        return Reading(
            self.term(module, rank, entry.scaling.of(rank), entry.dropout), self.shapes(module, rank)
        )

    def shapes(self, module: nn.Module, rank: int) -> dict[str, Shape]:
        """Return A (rank, in, *kernel), B (out, rank / groups, 1, …), bias (out,), magnitude (1, out, 1, …)."""
        conv: Any = module
        ones = (1,) * len(conv.kernel_size)
        return {
            "a": (rank, conv.in_channels, *conv.kernel_size),
            "b": (conv.out_channels, rank // conv.groups, *ones),
            "bias": (conv.out_channels,),
            "magnitude": (1, conv.out_channels, *ones),
        }

    def term(self, module: nn.Module, rank: int, scale: float, dropout: float) -> LoraTerm:
        """Return a ConvTerm."""
        return ConvTerm(rank, scale, dropout)

    def unmergeable(self, module: nn.Module, term: LoraTerm) -> str | None:
        """Refuse groups, which A mixes and the base does not, and another padding than zeros, which A always has."""
        conv: Any = module
        if isinstance(term, ConvMatrixTerm):
            return None
        if conv.groups > 1:
            return f"is a convolution with groups = {conv.groups}: B(A(x)) is not a convolution of its shape"
        if conv.padding_mode != "zeros":
            return f"is a convolution with padding_mode = {conv.padding_mode!r}: the adapter pads with zeros"
        return super().unmergeable(module, term)
