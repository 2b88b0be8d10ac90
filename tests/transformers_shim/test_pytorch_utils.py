"""The layers and helpers of transformers.pytorch_utils."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from shardload import transformers_shim as shim
from shardload.transformers_shim.pytorch_utils import (
    Conv1D,
    apply_chunking_to_forward,
    find_pruneable_heads_and_indices,
    id_tensor_storage,
    isin_mps_friendly,
    prune_conv1d_layer,
    prune_layer,
    prune_linear_layer,
    softmax_backward_data,
)


def test_transposed_linear_and_chunking():
    layer = Conv1D(3, 5)
    x = torch.randn(2, 4, 5)
    torch.testing.assert_close(layer(x), x @ layer.weight + layer.bias)
    chunked = apply_chunking_to_forward(lambda t: t * 2, 2, 1, x)
    assert torch.equal(chunked, x * 2)


def test_pruning_keeps_the_other_heads():
    heads, keep = find_pruneable_heads_and_indices({0, 2}, 3, 2, {1})
    # Head 1 went before: of the features that are left, those of head 0 go, and those of head 2, now the second.
    assert heads == {0, 2}
    assert keep.tolist() == [4, 5]
    layer = nn.Linear(6, 4)
    rows = prune_linear_layer(layer, torch.tensor([0, 3]))
    assert torch.equal(rows.weight, layer.weight[[0, 3]])
    assert torch.equal(rows.bias, layer.bias[[0, 3]])
    columns = prune_layer(layer, torch.tensor([1, 2]), dim=1)
    assert torch.equal(columns.weight, layer.weight[:, [1, 2]])
    assert torch.equal(columns.bias, layer.bias)
    turned = prune_layer(Conv1D(4, 6), torch.tensor([0, 3]))
    assert turned.weight.shape == (6, 2)
    assert turned(torch.ones(1, 6)).shape == (1, 2)
    with pytest.raises(ValueError, match="can't be pruned"):
        prune_layer(nn.Identity(), torch.tensor([0]))


def test_chunks_must_fit():
    with pytest.raises(ValueError, match="chunks of 2"):
        apply_chunking_to_forward(torch.relu, 2, 1, torch.ones(1, 5))


def test_a_method_is_cached_unless_torch_compiles():
    class Counts:
        calls = 0

        @shim.compile_compatible_method_lru_cache(maxsize=8)
        def double(self, x):
            self.calls += 1
            return 2 * x

    counts = Counts()
    assert [counts.double(2), counts.double(2), counts.double(3)] == [4, 4, 6]
    assert counts.calls == 2


def test_a_conv1d_keeps_the_outputs_and_inputs_that_stay():
    layer = Conv1D(4, 6)
    layer.bias.data.normal_()
    outputs = prune_conv1d_layer(layer, torch.tensor([0, 3]))
    assert torch.equal(outputs.weight, layer.weight[:, [0, 3]])
    assert torch.equal(outputs.bias, layer.bias[[0, 3]])
    inputs = prune_layer(layer, torch.tensor([1, 5]), dim=0)
    assert torch.equal(inputs.weight, layer.weight[[1, 5]])
    assert torch.equal(inputs.bias, layer.bias)


def test_chunks_along_several_tensors_are_joined():
    x, y = torch.randn(2, 6, 3), torch.randn(2, 6, 3)
    seen = []

    def add(a, b):
        seen.append(a.shape[1])
        return a + b

    assert torch.equal(apply_chunking_to_forward(add, 2, 1, x, y), x + y)
    assert torch.equal(apply_chunking_to_forward(add, 0, 1, x, y), x + y)
    assert seen == [2, 2, 2, 6]


def test_the_gradient_of_a_softmax_is_torchs():
    x = torch.randn(3, 5, requires_grad=True)
    output, weights = x.softmax(1), torch.randn(3, 5)
    (output * weights).sum().backward()
    found = softmax_backward_data(SimpleNamespace(dim=1), weights, output.detach(), 1, output)
    torch.testing.assert_close(found, x.grad)


def test_views_of_one_storage_have_one_id():
    x = torch.arange(6.0)
    assert id_tensor_storage(x) == id_tensor_storage(x.view(2, 3)[1])
    assert id_tensor_storage(x) != id_tensor_storage(x.clone())
    assert isin_mps_friendly(torch.tensor([1, 2, 3]), torch.tensor([3, 1])).tolist() == [True, False, True]
