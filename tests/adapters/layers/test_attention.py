"""nn.MultiheadAttention: its output with adapters is that of the changed projections."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import attach_lora, disable_adapter, set_adapter
from shardload.adapters.adapter import LoraEntry, Scaling
from shardload.adapters.layers.attention import Attention, AttentionOutput, InputTerm, OutputTerm
from shardload.adapters.layers.linear import LinearTerm
from shardload.adapters.layers.term import Factors
from shardload.tensor_ref import Span, TensorRef
from tests.adapters.tiny import randomised


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = nn.Sequential(nn.MultiheadAttention(8, 2)).double().eval()
    attach_lora(made, 2, 6, ["0"])
    return randomised(made)


def plain(layer, changed):
    """Return an attention without adapters, its projections as they are given."""
    made = nn.MultiheadAttention(8, 2).double().eval()
    made.load_state_dict(
        {name: value for name, value in layer.state_dict().items() if "lora" not in name} | changed
    )
    return made


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_the_output_is_that_of_the_changed_projections(model, weight):
    attention = model[0]
    x = torch.randn(3, 1, 8, dtype=torch.float64)
    set_adapter(model, {"default": weight})
    changed = {}
    with torch.no_grad():
        for path, module in (("", attention), ("out_proj.", attention.out_proj)):
            term, factors = module.lora_terms["default"], module.lora_factors("default")
            # PEFT adds the output's delta twice, and every adapter was trained so.
            times = 2 if path else 1
            delta = times * term.scale * factors.b @ factors.a
            changed[path + term.attribute] = module._parameters[term.attribute] + weight * delta
        torch.testing.assert_close(attention(x, x, x)[0], plain(attention, changed)(x, x, x)[0])
        with disable_adapter(model):
            torch.testing.assert_close(attention(x, x, x)[0], plain(attention, {})(x, x, x)[0])
        assert attention.in_proj_weight.shape == (24, 8)  # the weights are put back after the call


def test_the_output_projection_takes_its_delta_twice():
    factors = Factors(torch.randn(2, 8), torch.randn(8, 2))
    once = LinearTerm(2, 3.0).delta(factors, (8, 8))
    assert torch.equal(OutputTerm(2, 3.0).delta(factors, (8, 8)), 2 * once)
    assert torch.equal(OutputTerm(2, 3.0).delta(factors, (8, 8), slice(2, 5)), 2 * once[2:5])
    assert (InputTerm(2, 3.0).attribute, InputTerm.adds_bias) == ("in_proj_weight", False)


def entry(**more):
    ref = TensorRef("x", "F32", (2, 8), "adapter", Span(0, 64))
    return LoraEntry("x", ref, TensorRef("y", "F32", (24, 2), "adapter", Span(0, 64)), Scaling(6.0), **more)


MAGNITUDE = TensorRef("m", "F32", (8,), "adapter", Span(0, 32))


def test_what_peft_does_not_define_either_is_refused():
    apart = nn.MultiheadAttention(8, 2, kdim=4)
    assert "no fused projection" in Attention().unfit(apart, entry())
    whole = nn.MultiheadAttention(8, 2)
    assert "DoRA is not defined" in Attention().unfit(whole, entry(magnitude=MAGNITUDE))
    assert "DoRA is not defined" in AttentionOutput().unfit(whole.out_proj, entry(magnitude=MAGNITUDE))
    assert Attention().unfit(whole, entry()) is None


def test_shapes_and_notes_of_both_projections():
    whole = nn.MultiheadAttention(8, 2)
    reading = Attention().read(whole, entry(bias=MAGNITUDE))
    assert {part: reading.shapes[part] for part in "ab"} == {"a": (2, 8), "b": (24, 2)}
    assert "bias is not added" in reading.note
    assert type(Attention().term(whole, 2, 3.0, 0.5)) is InputTerm
    assert Attention().term(whole, 2, 3.0, 0.5).dropout == 0  # PEFT applies none here
    assert AttentionOutput().shapes(whole.out_proj, 2) == {"a": (2, 8), "b": (8, 2), "bias": (8,)}
