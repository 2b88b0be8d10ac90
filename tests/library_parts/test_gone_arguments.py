"""Calls with arguments that the library's models had until 4.57, from a repo's code, against today's calls."""

from __future__ import annotations

import pytest
import torch

from shardload.errors import RemoteCodeError
from shardload.library_parts.gone_arguments import take_gone_arguments
from tests.remote_code.repos import build, write

pytest.importorskip("transformers.core_model_loading")

CODE = """
import torch
from torch import nn
from transformers import BertConfig, CLIPTextConfig, PretrainedConfig, PreTrainedModel
from transformers.models.bert.modeling_bert import BertEncoder, BertLayer
from transformers.models.clip.modeling_clip import CLIPEncoder

class TinyConfig(PretrainedConfig):
    pass

SIZES = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=8)

class Tiny(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = BertLayer(BertConfig(is_decoder=True, add_cross_attention=True, **SIZES))
        self.bert = BertEncoder(BertConfig(**SIZES))
        self.clip = CLIPEncoder(CLIPTextConfig(**SIZES))

    def call(self, name, *args, **kwargs):
        return getattr(self, name)(*args, **kwargs)

    def clip_layer(self, *args, **kwargs):
        return self.clip.layers[0](*args, **kwargs)
"""


@pytest.fixture
def model(tmp_path):
    auto_map = {"AutoConfig": "modeling_tiny.TinyConfig", "AutoModel": "modeling_tiny.Tiny"}
    torch.manual_seed(0)
    return build(*write(tmp_path, {"modeling_tiny.py": CODE}, {"auto_map": auto_map})).eval()


def mask(seed):
    hidden = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(seed)) > 0.6
    hidden[..., 0] = False
    return torch.zeros(2, 1, 5, 5).masked_fill(hidden, torch.finfo(torch.float32).min)


STATES, OTHER = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(1))
HEADS = torch.tensor([1.0, 0.0])


def test_arguments_by_position_stand_where_they_stood(model):
    expected = model.layer(STATES, mask(1), encoder_hidden_states=OTHER, encoder_attention_mask=mask(2))
    assert torch.equal(model.call("layer", STATES, mask(1), None, OTHER, mask(2), None, False)[0], expected)
    output = model.call("bert", STATES, mask(1), [None, None], None, None, None, False, False, True, True)
    assert torch.equal(output[0], model.bert(STATES, mask(1))[0])
    assert len(output.hidden_states) == 3


def test_the_causal_mask_of_clip_counts(model):
    expected = model.clip(STATES, mask(1))[0]
    for given in ((STATES, None, mask(1)), (STATES, mask(1), None)):
        assert torch.equal(model.call("clip", *given)[0], expected)
    assert torch.equal(
        model.call("clip", inputs_embeds=STATES, attention_mask=None, causal_attention_mask=mask(1))[0],
        expected,
    )
    both = model.call("clip", STATES, attention_mask=mask(1), causal_attention_mask=mask(2))[0]
    assert torch.equal(both, model.clip(STATES, mask(1) + mask(2))[0])
    layer = model.clip.layers[0](STATES, mask(1))
    assert torch.equal(model.clip_layer(STATES, None, mask(1), False)[0], layer)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("layer", {"head_mask": HEADS}),
        ("bert", {"head_mask": [HEADS, None]}),
        ("clip_layer", {"attention_mask": None, "layer_head_mask": HEADS}),
        ("layer", {"layer_past": (STATES, STATES)}),
    ],
)
def test_what_is_computed_no_longer_is_refused(model, name, given):
    argument = list(given)[-1]
    with pytest.raises(RemoteCodeError, match=rf"has no {argument}"):
        model.call(name, STATES, **given)
    first = model.call(name, STATES, **{**given, argument: None})
    assert first[0].shape == STATES.shape


def test_a_mask_of_heads_by_position_is_refused(model):
    with pytest.raises(RemoteCodeError, match="has no head_mask"):
        model.call("layer", STATES, mask(1), HEADS)


def test_a_forward_that_refuses_unknown_keywords_itself_stays():
    class Plain(torch.nn.Module):
        def forward(self, x, head_mask=None):
            return x, head_mask

    before = Plain.forward
    take_gone_arguments(Plain)
    assert Plain.forward is before
