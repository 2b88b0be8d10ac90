"""Classes of repos that make their own mask in a method that today's library does not call."""

from __future__ import annotations

import pytest
import torch

from tests.remote_code.repos import build, write

pytest.importorskip("transformers.core_model_loading")

CODE = """
import torch
from transformers import LlamaConfig, LlamaModel, MistralConfig, MistralModel

class BothWays(LlamaModel):
    def _update_causal_mask(self, attention_mask, input_tensor, cache_position, past_key_values=None, **kwargs):
        assert cache_position.tolist() == [0, 1, 2, 3]
        hidden = torch.finfo(input_tensor.dtype).min * (attention_mask == 0)
        return hidden[:, None, None, :].expand(-1, 1, input_tensor.shape[1], -1)

class Older(MistralModel):
    def _prepare_decoder_attention_mask(self, attention_mask, input_shape, inputs_embeds, past_key_values_length):
        hidden = torch.finfo(inputs_embeds.dtype).min * (attention_mask == 0)
        return hidden[:, None, None, :].expand(-1, 1, input_shape[1], -1)
"""
SIZES = {
    "vocab_size": 11, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # fmt: skip
IDS = torch.tensor([[0, 0, 3, 4], [5, 6, 7, 8]])
SEEN = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])


@pytest.mark.parametrize("name", ["BothWays", "Older"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_classs_own_mask_is_used(tmp_path, name, implementation):
    torch.manual_seed(0)
    config = {"auto_map": {"AutoModel": f"modeling_tiny.{name}"}, **SIZES}
    model = build(*write(tmp_path, {"modeling_tiny.py": CODE}, config)).eval()
    model.config._attn_implementation = implementation
    mask = (torch.finfo(torch.float32).min * (SEEN == 0))[:, None, None, :].expand(-1, 1, 4, -1)
    expected = type(model).__bases__[0].forward(model, IDS, attention_mask=mask)[0]
    assert torch.equal(model(IDS, attention_mask=SEEN)[0], expected)
    assert torch.equal(model(inputs_embeds=model.embed_tokens(IDS), attention_mask=SEEN)[0], expected)
    causal = type(model).__bases__[0].forward(model, IDS, attention_mask=SEEN)[0]
    assert not torch.equal(causal, expected)
