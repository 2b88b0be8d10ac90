"""PiSSA and OLoRA: adapters whose initialisation changed the base, made relative to the unchanged base."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload.adapters.layers import Factors
from shardload.adapters.layers.embedding import EmbeddingTerm
from shardload.adapters.layers.linear import LinearTerm
from shardload.adapters.layers.transposed import TransposedTerm

if TYPE_CHECKING:
    from shardload.adapters.layers import LoraTerm


def initial_unfit(initial: str, module: nn.Module, term: LoraTerm) -> str | None:
    """Return why the initialisation can't be computed again for this layer, or None."""
    weight = module._parameters.get(term.attribute)
    if type(term) is EmbeddingTerm:
        # PEFT initialises an embedding's adapter as usual, and leaves its weight alone.
        return None
    if type(term) not in {LinearTerm, TransposedTerm}:
        return f"is a {type(module).__name__}, for which the initialisation {initial!r} is not defined"
    own = getattr(module, "lora_base", type(module))
    if isinstance(module, nn.Linear) and own.forward is not nn.Linear.forward:
        return (
            f"is a {own.__name__}, whose own forward may do more with its weight than multiply: an adapter can't "
            f"restore what {initial} took from the weight"
        )
    if weight is None or not weight.is_floating_point():
        return f"is quantised, and {initial} needs the full-precision weight that the adapter started from"
    if weight.device.type == "meta":
        return f"has no weights yet, and {initial} is computed from them: load the base first"
    return None


def relative_to_base(
    initial: str, module: nn.Module, term: LoraTerm, factors: Factors
) -> tuple[LoraTerm, Factors]:
    """Return the adapter as a plain LoRA of twice the rank over the unchanged base.

    Such an adapter was trained over `W - scale * B0 @ A0`, with A0 and B0 computed from W. So it computes
    W + scale * (B @ A - B0 @ A0): [A; A0] and [B, -B0], as PEFT's own conversion stores it. The base does not change.
    """
    if isinstance(term, EmbeddingTerm):
        return term, factors
    weight: Any = module._parameters[term.attribute]
    wide = torch.promote_types(weight.dtype, torch.float32)
    base = weight.detach().to(wide)
    turned = isinstance(term, TransposedTerm)
    # PEFT transposes a transposed weight for PiSSA; for OLoRA it computes and subtracts without transposing.
    if turned and initial == "pissa":
        base = base.T
    a, b = _START[initial](base, term.rank, term.scale)
    if turned and initial == "olora":
        a, b = b.T, a.T
    joined = Factors(
        _parameter(torch.cat([factors.a, a.to(factors.a.dtype)])),
        _parameter(torch.cat([factors.b, -b.to(factors.b.dtype)], dim=1)),
        factors.bias,
    )
    return replace(term, rank=2 * term.rank), joined


def _pissa(base: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A0 and B0 of PiSSA (arXiv 2404.02948): the leading singular vectors, the values split between them."""
    left, values, right = torch.linalg.svd(base, full_matrices=False)
    root = (values[:rank] / scale).sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def _olora(base: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A0 and B0 of OLoRA (arXiv 2406.01775): the first rows of R and columns of Q."""
    del scale
    q, r = torch.linalg.qr(base)
    return r[:rank], q[:, :rank]


_START = {"pissa": _pissa, "olora": _olora}


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous(), requires_grad=False)
