"""train() and eval() leave the base alone, and merge on request."""

from __future__ import annotations

import copy

import pytest
import torch

from shardload import (
    attach_lora,
)
from tests.adapters.tiny import TOKENS, Tiny, randomised


def test_train_and_eval_do_not_touch_the_base():
    """loralib subtracts the delta from whatever weights are there when train() is called after eval()."""
    model = Tiny()
    attach_lora(model, 2, 4, ["q"])
    randomised(model)
    base = model.layers[0].q.weight.clone()
    for _ in range(3):
        model.eval()
        assert torch.equal(model.layers[0].q.weight, base)
        model.train()
        assert torch.equal(model.layers[0].q.weight, base)


@pytest.mark.filterwarnings("ignore:.*copies.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*copy.*:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eval_merges_on_request_and_train_takes_it_back(dtype):
    model = Tiny(dtype)
    attach_lora(model, 2, 4, ["q", "up"], merge_on_eval=True)
    randomised(model).train()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    separate = model(TOKENS)
    for _ in range(20):
        model.eval()
        assert not torch.equal(model.layers[0].q.weight, base["layers.0.q.weight"])
        assert torch.allclose(
            model(TOKENS).float(), separate.float(), atol=1e-4 if dtype == torch.float32 else 0.2
        )
        model.layers[0].eval()
        model.layers[0].train()
        assert not torch.equal(model.layers[0].q.weight, base["layers.0.q.weight"])
        model.train()
        assert all(torch.equal(value, base[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(TOKENS), separate)
    model.eval()
    other = copy.deepcopy(model)
    other.train()
    assert torch.equal(other.layers[0].q.weight, base["layers.0.q.weight"])
    assert not torch.equal(model.layers[0].q.weight, base["layers.0.q.weight"])
