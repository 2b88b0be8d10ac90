"""What trains, marked and taken out as loralib does."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from shardload import (
    UsageError,
    attach_lora,
    disable_adapter,
    load_adapter,
    lora_state_dict,
    mark_only_lora_as_trainable,
    save_adapter,
    set_adapter,
)
from tests.adapters.tiny import TOKENS, Tiny


def test_marks_as_loralib_does():
    model = Tiny()
    attach_lora(model, 2, 4, ["q", "up"])
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    mark_only_lora_as_trainable(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if "lora_" in n
    }
    mark_only_lora_as_trainable(model, "lora_only")
    marked = {n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}
    assert marked == {"layers.0.up.bias", "layers.1.up.bias"}
    mark_only_lora_as_trainable(model, bias="all")
    marked = {n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}
    assert marked == {n for n, _ in Tiny().named_parameters() if n.endswith("bias")}
    with pytest.raises(UsageError, match="bias must be one of"):
        mark_only_lora_as_trainable(model, "some")
    set_adapter(model, {})
    with pytest.raises(UsageError, match="no adapter is active"):
        mark_only_lora_as_trainable(model)


def test_biases_that_were_marked_are_the_adapters_own(tmp_path):
    model = Tiny()
    attach_lora(model, 2, 4, ["up"])
    mark_only_lora_as_trainable(model, "all")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5)
    wanted = model(TOKENS)
    with disable_adapter(model):
        assert torch.equal(model(TOKENS), Tiny()(TOKENS))
    save_adapter(model, tmp_path)
    other = Tiny()
    load_adapter(other, tmp_path)
    assert torch.equal(other(TOKENS), wanted)


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_a_state_dict_of_what_was_trained_goes_back(bias):
    model = Tiny()
    attach_lora(model, 2, 4, ["q", "up"], bias=bias)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape))
    state = lora_state_dict(model, bias)
    assert state.keys() >= {n for n, p in model.named_parameters() if p.requires_grad}
    assert state.keys() <= model.state_dict().keys()
    assert "layers.0.q.weight" not in state
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = Tiny()
    attach_lora(other, 2, 4, ["q", "up"], bias=bias)
    assert not other.load_state_dict(torch.load(file), strict=False).unexpected_keys
    assert torch.equal(other(TOKENS), model(TOKENS))
    with pytest.raises(UsageError, match="bias must be one of"):
        lora_state_dict(model, "some")


def test_the_same_names_as_loralibs():
    loralib = pytest.importorskip("loralib")
    theirs = nn.Sequential(loralib.Linear(4, 6, r=2), nn.Linear(6, 3))
    loralib.mark_only_lora_as_trainable(theirs, "lora_only")
    ours = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    attach_lora(ours, 2, targets=["0"])
    mark_only_lora_as_trainable(ours, "lora_only")
    spelled = {name.replace(".default.weight", "") for name, p in ours.named_parameters() if p.requires_grad}
    assert spelled == {name for name, p in theirs.named_parameters() if p.requires_grad}
    for bias in ("none", "lora_only", "all"):
        mine = {name.replace(".default.weight", "") for name in lora_state_dict(ours, bias)}
        assert mine == loralib.lora_state_dict(theirs, bias).keys()
