"""The methods of every model class for parameter counts, dtype, device and attention masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload.transformers_shim.utils.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator


class ModuleUtilsMixin(nn.Module):
    """Methods that remote code calls on its own model."""

    config: Any

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating parameter (or buffer), else of the first parameter."""
        last = torch.get_default_dtype()
        for tensor in _tensors(self):
            last = tensor.dtype
            if tensor.is_floating_point():
                return last
        return last

    @property
    def device(self) -> torch.device:
        """The device of the first parameter or buffer."""
        return next((tensor.device for tensor in _tensors(self)), torch.device("cpu"))

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Return the number of elements of the parameters, each tied parameter counted once."""
        skipped = set()
        if exclude_embeddings:
            skipped = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        return sum(
            parameter.numel()
            for parameter in self.parameters()
            if id(parameter) not in skipped and (parameter.requires_grad or not only_trainable)
        )

    def get_head_mask(
        self, head_mask: torch.Tensor | None, num_hidden_layers: int, is_attention_chunked: bool = False
    ) -> Any:
        """Return a mask of (layers, batch, heads, 1, 1), or a list of None where no heads are masked."""
        if head_mask is None:
            return [None] * num_hidden_layers
        if head_mask.dim() == 1:
            head_mask = head_mask[None, None, :, None, None].expand(num_hidden_layers, -1, -1, -1, -1)
        elif head_mask.dim() == 2:
            head_mask = head_mask[:, None, :, None, None]
        head_mask = head_mask.to(dtype=self.dtype)
        return head_mask.unsqueeze(-1) if is_attention_chunked else head_mask

    def warn_if_padding_and_no_attention_mask(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> None:
        """Warn once where ids begin or end with the padding token and there is no mask."""
        pad = self.config.pad_token_id
        if attention_mask is None and pad is not None and pad in input_ids[:, [-1, 0]]:
            get_logger(__name__).warning_once("input_ids seem to be padded, and there is no attention_mask")

    def invert_attention_mask(self, encoder_attention_mask: torch.Tensor) -> torch.Tensor:
        """Return an additive mask, (batch, 1, 1 or length, length): 0 where attended, the dtype's minimum else."""
        mask = encoder_attention_mask
        mask = mask[:, None, :, :] if mask.dim() == 3 else mask[:, None, None, :]
        return (1.0 - mask.to(dtype=self.dtype)) * torch.finfo(self.dtype).min

    def get_extended_attention_mask(
        self,
        attention_mask: torch.Tensor,
        input_shape: tuple[int, ...],
        device: torch.device | None = None,  # noqa: ARG002 - old callers pass it
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Return the additive mask of a padding mask, also causal where the config is a decoder's."""
        dtype = dtype or self.dtype
        if attention_mask.dim() == 3:
            mask = attention_mask[:, None, :, :]
        elif attention_mask.dim() == 2 and self.config.is_decoder:
            mask = _causal(attention_mask, input_shape)
        elif attention_mask.dim() == 2:
            mask = attention_mask[:, None, None, :]
        else:
            raise ValueError(
                f"an attention mask of shape {tuple(attention_mask.shape)} is neither 2-d nor 3-d"
            )
        return (1.0 - mask.to(dtype=dtype)) * torch.finfo(dtype).min


def _causal(attention_mask: torch.Tensor, input_shape: tuple[int, ...]) -> torch.Tensor:
    length, total = input_shape[1], attention_mask.shape[1]
    ones = torch.ones(length, total, dtype=attention_mask.dtype, device=attention_mask.device)
    return ones.tril(total - length)[None, None] * attention_mask[:, None, None, :]


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()
