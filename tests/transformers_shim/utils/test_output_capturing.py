"""The decorator of 4.54 and later that records what layers return."""

from __future__ import annotations

import pytest
import torch

from shardload.transformers_shim.utils.output_capturing import OutputRecorder
from tests.remote_code.repos import build, tiny

MODEL = """
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions as Output
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import OutputRecorder, check_model_inputs

from .configuration_tiny import TinyConfig


class Attention(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor, x.sum(-1)


class Layer(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.own, self.cross = Attention(number + 2), Attention(-1)
        self.router = nn.Identity()

    def forward(self, hidden_states, **kwargs):
        return self.router(self.cross(self.own(hidden_states)[0])[0])


class TinyModel(PreTrainedModel):
    config_class = TinyConfig
    _can_record_outputs = RECORDS

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(Layer(number) for number in range(2))
        self.gradient_checkpointing = False

    @DECORATOR
    def forward(self, x, **kwargs):
        self.seen = kwargs
        for layer in self.layers:
            x = layer(x)
        return Output(last_hidden_state=x + 1)
"""
PLAIN = '{"hidden_states": Layer, "attentions": Attention}'


def model(tmp_path, records=PLAIN, decorator="check_model_inputs"):
    return build(*tiny(tmp_path, model=MODEL.replace("RECORDS", records).replace("DECORATOR", decorator)))


X = torch.ones(1, 2, 3)


def test_nothing_is_recorded_unless_asked(tmp_path):
    made = model(tmp_path)
    output = made(X)
    assert list(output) == ["last_hidden_state"]
    assert made.seen == {"use_cache": True}
    assert not any(module._forward_hooks for module in made.modules())


@pytest.mark.parametrize("decorator", ["check_model_inputs", "check_model_inputs()"])
def test_hidden_states_are_the_inputs_of_the_layers_and_the_outputs_own_last(tmp_path, decorator):
    output = model(tmp_path, decorator=decorator)(X, output_hidden_states=True)
    assert [value.unique().item() for value in output.hidden_states] == [1, -2, 7]
    assert output.hidden_states[-1] is output.last_hidden_state
    assert output.attentions is None


def test_the_last_hidden_state_stays_where_that_is_said(tmp_path):
    made = model(tmp_path, decorator="check_model_inputs(tie_last_hidden_states=False)")
    assert made(X, output_hidden_states=True).hidden_states[-1].unique().item() == 6


def test_attentions_are_what_the_modules_return_second(tmp_path):
    output = model(tmp_path)(X, output_attentions=True)
    assert [value.unique().item() for value in output.attentions] == [3, 6, -6, -18]
    assert all(value.shape == (1, 2) for value in output.attentions)


def test_the_config_asks_and_a_tuple_is_given(tmp_path):
    made = model(tmp_path)
    made.config.output_hidden_states = True
    last, states = made(X, return_dict=False)
    assert torch.equal(states[-1], last)
    assert len(states) == 3
    assert made.seen == {"use_cache": True}


def test_recorders_by_name_by_index_and_two_of_them(tmp_path):
    records = (
        '{"attentions": [OutputRecorder(Attention, index=1, layer_name="own"), '
        'OutputRecorder(Attention, index=1, layer_name="cross")], "router_logits": "router"}'
    )
    output = model(tmp_path, records)(X, output_attentions=True, output_router_logits=False)
    assert [value.unique().item() for value in output.attentions] == [3, -6]
    assert [value.unique().item() for value in output.cross_attentions] == [6, -18]
    assert "router_logits" not in output
    # Fields without a setting of their own come with the attentions.
    assert len(model(tmp_path / "b", records)(X, output_attentions=True)["router_logits"]) == 2


def test_no_cache_where_activations_are_computed_again(tmp_path):
    made = model(tmp_path).train()
    made.gradient_checkpointing = True
    made(X)
    assert made.seen == {"use_cache": False}


def test_hooks_go_when_the_pass_fails(tmp_path):
    made = model(tmp_path)
    with pytest.raises(AttributeError):
        made("text", output_hidden_states=True)
    assert not any(module._forward_hooks for module in made.modules())


@pytest.mark.parametrize(
    ("recorder", "name", "takes"),
    [
        (OutputRecorder(torch.nn.Linear), "layers.0.q", True),
        (OutputRecorder(torch.nn.LayerNorm), "layers.0.q", False),
        (OutputRecorder(None, class_name="q"), "layers.0.q", True),
        (OutputRecorder(None, class_name="k"), "layers.0.q", False),
        (OutputRecorder(torch.nn.Linear, layer_name="layers"), "layers.0.q", True),
        (OutputRecorder(torch.nn.Linear, layer_name="encoder"), "layers.0.q", False),
        (OutputRecorder(None), "layers.0.q", False),
    ],
)
def test_which_modules_a_recorder_takes(recorder, name, takes):
    assert recorder.takes(name, torch.nn.Linear(1, 1)) is takes
