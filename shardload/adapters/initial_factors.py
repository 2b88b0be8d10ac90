"""The first values of a fresh LoRA: A is random and B zero, so that the output does not change yet."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from shardload.adapters.layers import Factors
from shardload.adapters.layers.embedding import EmbeddingTerm
from shardload.adapters.values import as_parameter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.adapters.layers import LoraTerm

INITS = (True, False, "gaussian")
"""The values of PEFT's `init_lora_weights` that leave the base alone."""


def initial_factors(
    term: LoraTerm,
    parts: Mapping[str, torch.Tensor],
    base: torch.Tensor | None,
    init: bool | str,
    generator: torch.Generator | None,
) -> Factors:
    """Fill zeroed parts ("a", "b", and "bias" and "magnitude" where wanted) as PEFT does, and return them.

    With True, A is drawn as nn.Linear does (uniform up to 1 / sqrt(inputs), Kaiming's with a = sqrt(5)) and B is zero;
    "gaussian" draws A with the standard deviation 1 / rank; False draws B as A. For an embedding A is zero and B is
    normal. A DoRA magnitude is the norm of `base` plus the delta.
    """
    a, b = parts["a"], parts["b"]
    if isinstance(term, EmbeddingTerm):
        b.normal_(generator=generator)
        if init is False:
            a.normal_(generator=generator)
    elif init == "gaussian":
        a.normal_(std=1 / term.rank, generator=generator)
    else:
        for part in (a, b) if init is False else (a,):
            bound = 1 / math.sqrt(math.prod(part.shape[1:]))
            part.uniform_(-bound, bound, generator=generator)
    magnitude = parts.get("magnitude")
    if magnitude is not None and base is not None and not base.is_meta:
        wide = torch.promote_types(a.dtype, base.dtype)
        delta = term.delta(Factors(a, b).to(wide), tuple(base.shape))
        norm = term.norm_squares(base.detach().to(wide), delta).sqrt()
        magnitude = norm.to(a.dtype).reshape(magnitude.shape)
    bias = parts.get("bias")
    return Factors(
        as_parameter(a),
        as_parameter(b),
        None if bias is None else as_parameter(bias),
        None if magnitude is None else as_parameter(magnitude),
    )
