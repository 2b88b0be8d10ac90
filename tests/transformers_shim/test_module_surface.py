"""The methods that remote code calls on its own model: counts, dtype, device and masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload.transformers_shim._module_surface import ModuleUtilsMixin
from shardload.transformers_shim.configuration_utils import PretrainedConfig


class Tiny(ModuleUtilsMixin):
    def __init__(self, **config):
        super().__init__()
        self.config = PretrainedConfig(**config)
        self.register_buffer("steps", torch.zeros(3, dtype=torch.long))
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.LayerNorm(4)


def test_a_tied_parameter_is_counted_once():
    model = Tiny()
    assert model.num_parameters() == 24 + 8
    assert model.num_parameters(exclude_embeddings=True) == 8
    model.norm.bias.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == 24 + 4


def test_the_first_floating_value_says_the_dtype():
    model = Tiny().bfloat16()
    assert (model.dtype, model.device) == (torch.bfloat16, torch.device("cpu"))
    assert model.to("meta").device == torch.device("meta")
    model = ModuleUtilsMixin()
    assert (model.dtype, model.device) == (torch.get_default_dtype(), torch.device("cpu"))
    model.register_buffer("steps", torch.zeros(3, dtype=torch.long))
    assert model.dtype == torch.int64
    model.register_buffer("scale", torch.zeros(3, dtype=torch.float16))
    assert model.dtype == torch.float16


def test_head_masks_are_spread_over_layers_batch_and_positions():
    model = Tiny().half()
    kept = torch.tensor([1, 0])
    mask = model.get_head_mask(kept, 3)
    assert (mask.shape, mask.dtype) == ((3, 1, 2, 1, 1), torch.float16)
    assert (mask[:, 0, :, 0, 0] == kept).all()
    assert model.get_head_mask(kept, 3, is_attention_chunked=True).shape == (3, 1, 2, 1, 1, 1)
    layers = torch.tensor([[1, 0], [0, 1]])
    assert model.get_head_mask(layers, 2)[:, 0, :, 0, 0].tolist() == layers.tolist()
    assert model.get_head_mask(None, 2) == [None, None]


LOWEST = torch.finfo(torch.float32).min


@pytest.mark.parametrize("decoder", [False, True])
def test_a_padding_mask_is_also_causal_for_a_decoder(decoder):
    mask = torch.tensor([[1, 1, 0, 1]])
    seen = mask[:, None, None].bool().expand(1, 1, 2, 4)
    if decoder:  # two queries after two cached keys
        seen = seen & torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    made = Tiny(is_decoder=decoder).get_extended_attention_mask(mask, (1, 2))
    assert torch.equal(made.expand(1, 1, 2, 4), torch.zeros(1, 1, 2, 4).masked_fill(~seen, LOWEST))


def test_a_mask_of_three_dimensions_is_taken_as_it_is():
    mask = torch.tensor([[[1, 0], [1, 1]]])
    wanted = [[[[0.0, LOWEST], [0.0, 0.0]]]]
    assert Tiny().get_extended_attention_mask(mask, (1, 2)).tolist() == wanted
    assert Tiny().invert_attention_mask(mask).tolist() == wanted
    made = Tiny().get_extended_attention_mask(mask, (1, 2), dtype=torch.float16)
    assert made.min() == torch.finfo(torch.float16).min
    with pytest.raises(ValueError, match="neither 2-d nor 3-d"):
        Tiny().get_extended_attention_mask(torch.ones(2), (1, 2))
