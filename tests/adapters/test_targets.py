"""Which modules a fresh LoRA is put on, and what is said of names that choose none."""

from __future__ import annotations

import math
import re

import pytest
import torch

from shardload import (
    UnsupportedError,
    UsageError,
    attach_lora,
    delete_adapter,
)
from shardload.adapters.targets import Targets
from tests.adapters.tiny import TOKENS, Tiny, adapted, assert_unchanged, snapshot


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (["q"], ["layers.0.q", "layers.1.q"]),
        (["layers.1.q", "score"], ["layers.1.q", "score"]),
        (r"layers\.\d\.(q|up)", ["layers.0.q", "layers.0.up", "layers.1.q", "layers.1.up"]),
        (re.compile(r".*\.1\.down"), ["layers.1.down"]),
        (("embed",), ["embed"]),
    ],
)
def test_targets(targets, wanted):
    model = Tiny()
    plain = model(TOKENS)
    report = attach_lora(model, 4, 8, targets)
    assert adapted(model) == wanted
    assert report.ranks == {4: len(wanted)}
    assert report.scales == {2.0: len(wanted)}
    assert torch.equal(model(TOKENS), plain)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == [row.target for row in report.rows]
    assert all(".lora_" in name for name in trained)
    delete_adapter(model, "default")
    assert [type(module) for module in model.modules()] == [type(module) for module in Tiny().modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_patterns_layers_and_exclusions():
    model = Tiny()
    report = attach_lora(
        model,
        8,
        16,
        ["q", "up", "down"],
        rank_pattern={"up": 2, r"layers\.1\.down": 3},
        alpha_pattern={"down": 9},
        exclude=["layers.0.q"],
        use_rslora=True,
    )
    assert report.ranks == {2: 2, 8: 2, 3: 1}
    assert model.layers[1].down.lora_terms["default"].scale == 9 / math.sqrt(3)
    assert adapted(model) == ["layers.0.up", "layers.0.down", "layers.1.q", "layers.1.up", "layers.1.down"]
    other = Tiny()
    attach_lora(other, targets=["q", "up"], layers=1, layers_pattern="layers")
    assert adapted(other) == ["layers.1.q", "layers.1.up"]


def test_the_error_names_what_takes_a_lora():
    with pytest.raises(UsageError) as raised:
        attach_lora(Tiny(), targets=["attention"])
    assert "layers.{0-1}.q, layers.{0-1}.up, layers.{0-1}.down, score" in str(raised.value)


@pytest.mark.parametrize("target", ["norm", "layers"])
def test_a_module_that_takes_no_lora(target):
    model = Tiny()
    before = snapshot(model)
    with pytest.raises(UnsupportedError, match="has no LoRA for such a layer"):
        attach_lora(model, targets=["q", target])
    assert_unchanged(model, before)


PATHS = ["layers.0.q", "layers.0.up", "layers.1.q", "layers.1.up", "blocks.0.q", "q", "qq", "head.q"]


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (Targets(("q",)), ["layers.0.q", "layers.1.q", "blocks.0.q", "q", "head.q"]),
        (Targets(("0.q",)), ["layers.0.q", "blocks.0.q"]),
        (Targets(r"layers\.\d\.(q|up)"), ["layers.0.q", "layers.0.up", "layers.1.q", "layers.1.up"]),
        (Targets(r"q"), ["q"]),  # an expression matches whole paths
        (Targets(("q",), exclude=("1.q", "head.q")), ["layers.0.q", "blocks.0.q", "q"]),
        (Targets(("q",), layers=(1,)), []),  # PEFT looks for a number that two names come before
        (Targets(("q",), layers=(0,), layers_pattern=("blocks",)), ["blocks.0.q"]),
        (Targets(("q",), whole=("head",)), ["layers.0.q", "layers.1.q", "blocks.0.q", "q"]),
        (Targets("all-linear"), []),
        (Targets(r"(q+)+x"), []),  # it could take for ever
    ],
)
def test_which_paths_are_chosen(targets, found):
    assert targets.among(PATHS) == found


def test_a_layer_is_the_first_number_of_a_path():
    paths = [f"model.layers.{layer}.experts.{expert}.q" for layer in range(2) for expert in range(2)]
    assert Targets(("q",), layers=(1,)).among(paths) == paths[2:]
