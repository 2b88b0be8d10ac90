"""`transformers.pytorch_utils`, in part."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

# Classes append themselves at import; only trainers read it.
ALL_LAYERNORM_LAYERS: list[type[nn.Module]] = [nn.LayerNorm]

# `is_torch_greater_or_equal_than_X_Y` works for every version, see `_placeholders.probe`.


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
    """Apply `forward_fn` to chunks of `chunk_size` along `chunk_dim` and join them; 0 means all at once.

    Raises ValueError where the length is not a multiple of `chunk_size`, or the tensors are not of one length.
    """
    if chunk_size <= 0:
        return forward_fn(*tensors)
    lengths = {tensor.shape[chunk_dim] for tensor in tensors}
    if len(lengths) != 1 or min(lengths) % chunk_size:
        raise ValueError(f"lengths {sorted(lengths)} can't be cut into chunks of {chunk_size}")
    count = lengths.pop() // chunk_size
    pieces = zip(*(tensor.chunk(count, dim=chunk_dim) for tensor in tensors), strict=True)
    return torch.cat([forward_fn(*piece) for piece in pieces], dim=chunk_dim)


def find_pruneable_heads_and_indices(
    heads: Any, n_heads: int, head_size: int, already_pruned_heads: set[int]
) -> tuple[set[int], torch.Tensor]:
    """Return (the heads that are not pruned yet, the indices of the features to keep).

    `heads` are numbered as before any pruning; the indices are those of the layer as it is now.
    """
    remaining = set(heads) - already_pruned_heads
    mask = torch.ones(n_heads, head_size)
    for head in remaining:
        mask[head - sum(1 for pruned in already_pruned_heads if pruned < head)] = 0
    return remaining, torch.arange(mask.numel())[mask.view(-1).eq(1)].long()


def prune_linear_layer(layer: nn.Linear, index: torch.Tensor, dim: int = 0) -> nn.Linear:
    """Return a linear layer with only these outputs (`dim=0`) or inputs (`dim=1`)."""
    index = index.to(layer.weight.device)
    weight = layer.weight.index_select(dim, index).detach().clone()
    pruned = nn.Linear(
        weight.shape[1],
        weight.shape[0],
        bias=layer.bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    _put(pruned.weight, weight)
    if layer.bias is not None:
        _put(pruned.bias, (layer.bias[index] if dim == 0 else layer.bias).detach().clone())
    return pruned


def prune_conv1d_layer(layer: Conv1D, index: torch.Tensor, dim: int = 1) -> Conv1D:
    """Return a Conv1D with only these outputs (`dim=1`) or inputs (`dim=0`)."""
    index = index.to(layer.weight.device)
    weight = layer.weight.index_select(dim, index).detach().clone()
    pruned = Conv1D(weight.shape[1], weight.shape[0]).to(weight.device, weight.dtype)
    _put(pruned.weight, weight)
    _put(pruned.bias, (layer.bias[index] if dim == 1 else layer.bias).detach().clone())
    return pruned


def prune_layer(layer: Any, index: torch.Tensor, dim: int | None = None) -> Any:
    """Return a linear layer or a Conv1D with only these outputs, or inputs where `dim` says so."""
    if isinstance(layer, nn.Linear):
        return prune_linear_layer(layer, index, 0 if dim is None else dim)
    if isinstance(layer, Conv1D):
        return prune_conv1d_layer(layer, index, 1 if dim is None else dim)
    raise ValueError(f"{type(layer).__name__} can't be pruned")


def _put(parameter: torch.Tensor, value: torch.Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)


def meshgrid(*tensors: Any, indexing: str | None = None) -> tuple[torch.Tensor, ...]:
    """Return torch's meshgrid."""
    return torch.meshgrid(*tensors, indexing=indexing or "ij")


def softmax_backward_data(
    parent: Any, grad_output: torch.Tensor, output: torch.Tensor, dim: int, self: torch.Tensor
) -> torch.Tensor:
    """Return the gradient of a softmax along `parent.dim`, from its output and the output's gradient."""
    del dim
    found: torch.Tensor = torch._softmax_backward_data(grad_output, output, parent.dim, self.dtype)
    return found


def id_tensor_storage(tensor: torch.Tensor) -> tuple[torch.device, int, int]:
    """Return (device, address, size in bytes) of a tensor's storage: equal for tensors that share it."""
    storage = tensor.untyped_storage()
    return tensor.device, storage.data_ptr(), storage.nbytes()


def isin_mps_friendly(elements: torch.Tensor, test_elements: Any) -> torch.Tensor:
    """Return which elements are among `test_elements`."""
    return torch.isin(elements, test_elements)


def compile_compatible_method_lru_cache(*lru_args: Any, **lru_kwargs: Any) -> Callable[[Any], Any]:
    """Return `functools.lru_cache` as a decorator that does not cache while torch compiles."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        cached = functools.lru_cache(*lru_args, **lru_kwargs)(function)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs) if torch.compiler.is_compiling() else cached(*args, **kwargs)

        return wrapper

    return decorate
