"""What code for 4.45 and later asks for: decorated forwards, layers that checkpoint, attention functions."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from shardload.transformers_shim.configuration_utils import PretrainedConfig
from shardload.transformers_shim.integrations import use_kernel_forward_from_hub
from shardload.transformers_shim.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from shardload.transformers_shim.modeling_flash_attention_utils import (
    FlashAttentionKwargs,
    _flash_attention_forward,
    _get_unpad_data,
)
from shardload.transformers_shim.modeling_layers import GradientCheckpointingLayer
from shardload.transformers_shim.modeling_outputs import BaseModelOutputWithPast
from shardload.transformers_shim.modeling_utils import ALL_ATTENTION_FUNCTIONS, unwrap_model
from shardload.transformers_shim.processing_utils import Unpack
from shardload.transformers_shim.utils import (
    ContextManagers,
    LossKwargs,
    auto_docstring,
    cached_file,
    can_return_tuple,
)
from shardload.transformers_shim.utils.deprecation import deprecate_kwarg
from shardload.transformers_shim.utils.doc import copy_func
from shardload.transformers_shim.utils.model_parallel_utils import assert_device_map, get_device_map


class Returning(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.config = PretrainedConfig(**settings)

    @can_return_tuple
    @auto_docstring
    def forward(self, x, **kwargs: Unpack[FlashAttentionKwargs]):
        assert "return_dict" not in kwargs
        return BaseModelOutputWithPast(last_hidden_state=x)


def test_a_forward_that_can_return_a_tuple():
    assert Returning()(3).last_hidden_state == 3
    assert Returning()(3, return_dict=False) == (3,)
    assert Returning(return_dict=False)(3) == (3,)
    assert Returning(return_dict=False)(3, return_dict=True).last_hidden_state == 3


def test_keyword_types_can_be_inherited():
    class Both(FlashAttentionKwargs, LossKwargs): ...

    assert {"num_items_in_batch", "max_length_q"} <= set(Both.__annotations__) | set(
        FlashAttentionKwargs.__annotations__
    )


def test_decorators_of_documentation_leave_functions_alone():
    @auto_docstring(custom_intro="x")
    @use_kernel_forward_from_hub("RMSNorm")
    def function(x):
        """Text."""
        return x

    assert (function(2), function.__doc__) == (2, "Text.")
    copied = copy_func(function)
    copied.__doc__ = "Other."
    assert (copied(2), function.__doc__) == (2, "Text.")


class Layer(GradientCheckpointingLayer):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.seen = []

    def forward(self, x, past_key_values=None, use_cache=True):
        self.seen.append((past_key_values, use_cache))
        return torch.tanh(self.linear(x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_checkpoints_its_own_gradients(reentrant):
    layer, x = Layer().train(), torch.randn(2, 3, requires_grad=True)
    layer(x, past_key_values="cache").sum().backward()
    expected = layer.linear.weight.grad.clone()
    layer.zero_grad()
    layer.gradient_checkpointing = True
    layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=reentrant)
    layer(x, past_key_values="cache", use_cache=True).sum().backward()
    assert torch.equal(layer.linear.weight.grad, expected)
    assert layer.seen == [("cache", True), (None, False), (None, False)]  # run again in the backward pass
    layer.eval()(x, past_key_values="cache")
    assert layer.seen[-1] == ("cache", True)


class Attention(nn.Module):
    num_key_value_groups = 2
    is_causal = True


def attention_by_definition(query, key, value, seen, scale):
    scores = query @ key.repeat_interleave(2, dim=1).transpose(-1, -2) * scale
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights @ value.repeat_interleave(2, dim=1)).transpose(1, 2)


@pytest.mark.parametrize("queries", [1, 4])
def test_fused_attention_is_what_its_definition_says(queries):
    query, (key, value) = torch.randn(2, 4, queries, 8), torch.randn(2, 2, 2, 4, 8)
    run = ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert ALL_ATTENTION_FUNCTIONS.get_interface("eager", "own") == "own"
    causal = torch.ones(queries, 4, dtype=torch.bool).tril(4 - queries)
    got, weights = run(Attention(), query, key, value, None, scaling=0.3)
    torch.testing.assert_close(got, attention_by_definition(query, key, value, causal, 0.3))
    assert weights is None
    seen = torch.tensor([True, False, True, True]).expand(2, 1, queries, 4)
    got, _ = sdpa_attention_forward(Attention(), query, key, value, seen, scaling=0.3)
    torch.testing.assert_close(got, attention_by_definition(query, key, value, seen, 0.3))
    got, _ = sdpa_attention_forward(Attention(), query, key, value, None, scaling=0.3, is_causal=False)
    torch.testing.assert_close(got, attention_by_definition(query, key, value, torch.tensor(True), 0.3))


def test_heads_are_repeated_side_by_side():
    heads = torch.randn(1, 2, 3, 4)
    assert torch.equal(repeat_kv(heads, 2)[0, :, 0, 0], heads[0, [0, 0, 1, 1], 0, 0])


def test_packed_sequences_and_flash_attention():
    places, starts, longest = _get_unpad_data(torch.tensor([[0, 1, 1], [1, 1, 1]]))
    assert (places.tolist(), starts.tolist(), longest) == ([1, 2, 3, 4, 5], [0, 2, 5], 3)
    with pytest.raises(ImportError, match="eager"):
        _flash_attention_forward(None)


def test_context_managers_are_left_in_the_opposite_order():
    said = []

    @contextlib.contextmanager
    def saying(name):
        said.append(name)
        yield
        said.append(f"{name} left")

    with ContextManagers([saying("a"), saying("b")]):
        said.append("inside")
    assert said == ["a", "b", "inside", "b left", "a left"]


def test_renamed_arguments():
    @deprecate_kwarg("old", version="5", new_name="new")
    def function(new=None):
        return new

    assert (function(old=1), function(new=2)) == (1, 2)


def test_layers_are_spread_evenly():
    spread = get_device_map(5, [0, 1])
    assert spread == {0: [0, 1, 2], 1: [3, 4]}
    assert_device_map(spread, 5)
    with pytest.raises(ValueError, match="of 6"):
        assert_device_map(spread, 6)


def test_files_beside_a_model(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    assert cached_file(tmp_path, "a.json") == str(tmp_path / "a.json")
    with pytest.raises(OSError, match="b.json"):
        cached_file(tmp_path, "b.json")


def test_wrappers_are_taken_off():
    inner = nn.Linear(1, 1)
    wrapper = nn.Module()
    wrapper.module = inner
    assert unwrap_model(wrapper) is inner
