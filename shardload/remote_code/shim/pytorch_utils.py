"""`transformers.pytorch_utils`, in part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

# Classes append themselves to it at import; only trainers read it.
ALL_LAYERNORM_LAYERS: list[type[nn.Module]] = [nn.LayerNorm]

is_torch_greater_or_equal_than_1_10 = True
is_torch_greater_or_equal_than_1_12 = True
is_torch_greater_or_equal_than_1_13 = True
is_torch_greater_or_equal_than_2_0 = True
is_torch_greater_or_equal_than_2_1 = True
is_torch_greater_or_equal_than_2_2 = True


class Conv1D(nn.Module):
    """A linear layer whose weight is stored transposed: (nx, nf)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x @ weight + bias`; `x` is (…, nx), the result (…, nf)."""
        return torch.addmm(self.bias, x.reshape(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


def apply_chunking_to_forward(
    forward_fn: Callable[..., torch.Tensor], chunk_size: int, chunk_dim: int, *tensors: Any
) -> torch.Tensor:
    """Apply `forward_fn` to chunks of `chunk_size` along `chunk_dim` and join them; 0 means all at once."""
    if chunk_size <= 0:
        return forward_fn(*tensors)
    count = tensors[0].shape[chunk_dim] // chunk_size
    pieces = zip(*(tensor.chunk(count, dim=chunk_dim) for tensor in tensors), strict=True)
    return torch.cat([forward_fn(*piece) for piece in pieces], dim=chunk_dim)
