"""Activations by their names, against torch's and transformers'."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from shardload.transformers_shim.activations import ACT2FN, get_activation


def test_activations_are_new_modules_by_name():
    x = torch.linspace(-2, 2, 9)
    assert ACT2FN["silu"] is not ACT2FN["silu"]
    assert torch.equal(ACT2FN["silu"](x), functional.silu(x))
    assert torch.equal(get_activation("gelu")(x), functional.gelu(x))
    for name in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"):
        torch.testing.assert_close(ACT2FN[name](x), functional.gelu(x, approximate="tanh"))
    with pytest.raises(KeyError, match="no_such"):
        get_activation("no_such")


def test_activations_are_those_of_transformers():
    activations = pytest.importorskip("transformers.activations")
    x = torch.linspace(-4, 4, 33)
    for name in set(activations.ACT2FN) & set(ACT2FN):
        torch.testing.assert_close(ACT2FN[name](x), activations.ACT2FN[name](x), rtol=1e-6, atol=1e-6)


def test_a_clipped_activation_takes_its_bounds():
    assert ACT2FN["gelu_10"](torch.tensor([-20.0, 20.0])).tolist() == [0.0, 10.0]
