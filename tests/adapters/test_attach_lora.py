"""A fresh LoRA: what it begins with, what trains."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from shardload import (
    UsageError,
    active_adapters,
    attach_lora,
    delete_adapter,
    set_adapter,
)
from tests.adapters.tiny import TOKENS, Tiny, adapted, assert_unchanged, snapshot


def test_what_it_begins_with():
    model = nn.Sequential(nn.Linear(400, 300), nn.Linear(300, 200, dtype=torch.float64), nn.Embedding(50, 30))
    model[0].to(torch.bfloat16)
    attach_lora(model, 20, targets=["0", "1", "2"], seed=3)
    a = model[0].lora_A["default"].weight
    assert a.dtype == torch.float32
    assert model[1].lora_A["default"].weight.dtype == torch.float64
    # U(-b, b) with b = 1 / sqrt(400): the standard deviation is b / sqrt(3).
    assert a.abs().max() <= 0.05
    assert a.std().item() == pytest.approx(0.05 / math.sqrt(3), rel=0.03)
    assert not model[0].lora_B["default"].weight.any()
    assert not model[2].lora_A["default"].weight.any()
    assert model[2].lora_B["default"].weight.std().item() == pytest.approx(1, rel=0.1)
    again = nn.Sequential(nn.Linear(400, 300))
    before = torch.random.get_rng_state()
    attach_lora(again, 20, targets=["0"], seed=3)
    assert torch.equal(again[0].lora_A["default"].weight, a)
    assert torch.equal(torch.random.get_rng_state(), before)
    attach_lora(again, 20, targets=["0"], init="gaussian", dtype=torch.bfloat16, name="other")
    assert again[0].lora_A["other"].weight.dtype == torch.bfloat16
    assert again[0].lora_A["other"].weight.float().std().item() == pytest.approx(1 / 20, rel=0.05)
    assert active_adapters(again) == {"default": 1.0}
    attach_lora(again, 20, targets=["0"], init=False, name="third")
    assert again[0].lora_B["third"].weight.any()


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("whole", [(), ("score",)])
def test_biases_and_whole_modules_train_as_copies(bias, whole):
    model = Tiny()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    attach_lora(model, targets=["up"], bias=bias, modules_to_save=whole)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    wanted = {name for name in dict(model.named_parameters()) if ".lora_" in name}
    if bias == "lora_only":
        wanted |= {"layers.0.up.bias", "layers.1.up.bias"}
    if bias == "all":
        wanted |= {name for name in base if name.endswith("bias")}
    if whole:
        wanted |= {"score.weight", "score.bias"}
    assert trained == wanted
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    set_adapter(model, {})
    assert torch.equal(model(TOKENS), Tiny()(TOKENS))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    delete_adapter(model, "default")
    assert all(torch.equal(value, base[name]) for name, value in model.state_dict().items())


def test_dora_changes_nothing_at_first():
    model = Tiny()
    attach_lora(model, targets=["q", "up"], use_dora=True)
    assert torch.allclose(model(TOKENS), Tiny()(TOKENS), atol=1e-6)
    norms = model.layers[0].up.weight.norm(dim=1)
    assert torch.allclose(model.layers[0].up.lora_magnitude_vector["default"].weight, norms)


def test_a_module_with_two_names():
    model = Tiny()
    model.layers[1] = model.layers[0]
    report = attach_lora(model, targets=["q"])
    assert report.modules == 1
    assert report.warnings == ("layers.0.q is the same layer as layers.1.q: all of them are adapted",)


def test_attention_gets_both_projections():
    model = nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True))
    attach_lora(model, targets=["0"], init=False)
    assert sorted(adapted(model)) == ["0", "0.out_proj"]
    x = torch.randn(1, 3, 8)
    model[0](x, x, x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"targets": ["q_prj"]}, "'q_prj' matches no module"),
        ({"targets": ["qq", "up"]}, r"'qq' matches no module; nearest: 'q' (layers.{0-1}.q)"),
        ({"targets": r"layers\..\.k"}, "matches no module's whole path"),
        ({"targets": ["q"], "exclude": ["q"]}, "all targeted modules are excluded"),
        ({"targets": ["q"], "exclude": ["kq"]}, "the exclusion 'kq' matches no targeted module"),
        ({"targets": ["q"], "exclude": r"k.*"}, "the exclusion 'k.*' matches no targeted module"),
        (
            {"targets": ["q"], "layers": [1, 7], "layers_pattern": "layers"},
            "layers 7 have no targeted module",
        ),
        ({"targets": ["q"], "modules_to_save": ["scores"]}, "modules_to_save names 'scores'"),
        ({"targets": ["q"], "rank_pattern": {"v": 3}}, "matches no targeted module: v"),
        ({"targets": "("}, "is no regular expression"),
        ({"targets": []}, "targets must be"),
        ({"targets": [3]}, "targets must be"),
        ({"targets": r".*q", "layers": [1]}, "narrow a list of names"),
        ({"targets": ["q"], "r": 0}, "r must be a whole number"),
        ({"targets": ["q"], "r": 2.5, "alpha": "x", "dropout": -1}, "dropout must be a number"),
        ({"targets": ["q"], "dropout": 1.0}, "dropout must be below 1"),
        ({"targets": ["q"], "bias": "some"}, "bias must be one of"),
        ({"targets": ["q"], "init": "pissa"}, "init 'pissa' is not done here"),
        ({"targets": ["q"], "name": "a.b"}, "can't be the name"),
    ],
)
def test_what_is_refused(settings, said):
    model = Tiny()
    before = snapshot(model)
    with pytest.raises(UsageError, match=re.escape(said)):
        attach_lora(model, **settings)
    assert_unchanged(model, before)


def test_training_lowers_the_loss_and_leaves_the_base():
    torch.manual_seed(0)
    model = Tiny()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    attach_lora(model, 4, 8, "all-linear", dropout=0.1, seed=1)
    model.train()
    wanted = torch.randint(0, 3, TOKENS.shape)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(TOKENS).flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    delete_adapter(model, "default")
    assert all(torch.equal(value, base[name]) for name, value in model.state_dict().items())
