"""Attaching, activating and detaching: everything comes back, also after an interrupt."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import fill, open_checkpoint
from shardload.adapters import activate, active_adapters, detach, load_adapter
from shardload.errors import (
    UnsupportedError,
    UsageError,
)
from tests.adapters.tiny import (
    PREFIX,
    TOKENS,
    Scaled,
    Tiny,
    assert_unchanged,
    by_hand,
    config,
    error,
    lora_tensors,
    snapshot,
    write,
)
from tests.calls import calls_of
from tests.tiny import write_checkpoint


def test_a_second_adapter_is_attached_and_not_active(tmp_path):
    model = Tiny()
    one, two = lora_tensors(model), lora_tensors(model, names=("q",), seed=1)
    load_adapter(model, write(tmp_path / "one", one), trainable=True)
    logits = model(TOKENS)
    report = load_adapter(model, write(tmp_path / "two", two), name="two", trainable=True)
    assert not report.active
    assert active_adapters(model) == {"default": 1.0}
    assert torch.equal(model(TOKENS), logits)
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".two." in name)

    activate(model, {"two": 0.5})
    assert error(model(TOKENS), by_hand(Tiny(), two, 1.5)) <= 1e-5
    assert {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad} == {"two"}
    activate(model, {})
    assert torch.equal(model(TOKENS), Tiny()(TOKENS))
    activate(model, {"default": 1.0, "two": 0.0})
    assert error(model(TOKENS), logits) <= 1e-6
    with pytest.raises(UsageError, match="three"):
        activate(model, {"three": 1.0})
    with pytest.raises(UsageError, match="attached to this model already"):
        load_adapter(model, tmp_path / "two", name="two")


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_detaching_restores_everything(tmp_path, order):
    model = Tiny()
    model.embed.weight.requires_grad_(False)
    model.layers[0].q.register_forward_hook(lambda *_: None)
    before = snapshot(model)
    head = {f"{PREFIX}score.weight": torch.ones(3, 8), f"{PREFIX}score.bias": torch.ones(3)}
    settings = config(modules_to_save=["score"])
    load_adapter(model, write(tmp_path / "a", lora_tensors(model) | head, settings), name="a")
    load_adapter(model, write(tmp_path / "b", lora_tensors(model, names=("up",)) | head, settings), name="b")
    for name in order:
        detach(model, name)
    assert_unchanged(model, before)
    assert type(model.layers[0].down) is Scaled
    with pytest.raises(UsageError, match="attached"):
        detach(model, "a")


def test_a_base_that_was_filled_again_is_trainable_after_the_last_adapter(tmp_path):
    model = Tiny()
    base = write_checkpoint(tmp_path / "base", model.state_dict())
    load_adapter(model, write(tmp_path / "lora", lora_tensors(model)))
    fill(model, open_checkpoint(base), allow_missing=["*lora_*"])
    assert not any(parameter.requires_grad for parameter in model.embed.parameters())
    detach(model, "default")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_another_root_is_refused(tmp_path):
    model = Tiny()
    folder = write(tmp_path, lora_tensors(model))
    load_adapter(model, folder)
    before = snapshot(model)
    with pytest.raises(UsageError, match="larger or smaller part"):
        load_adapter(nn.ModuleDict({"inner": model}), folder, name="other")
    assert_unchanged(model, before)


@pytest.mark.parametrize(("step", "at"), [("_freeze", 1), ("adapt", 4), ("activate", 1)])
def test_an_interrupted_attach_is_undone(tmp_path, monkeypatch, step, at):
    """An interrupt that comes right after a step."""
    from shardload.adapters import attach

    model = Tiny()
    before = snapshot(model)
    real, calls = getattr(attach, step), []

    def interrupted(*args):
        calls.append(real(*args))
        if len(calls) == at:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(attach, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_adapter(model, write(tmp_path, lora_tensors(model)))
    assert_unchanged(model, before)


def test_many_layers_attach_in_calls_that_grow_with_their_number(tmp_path):
    def calls(count):
        model = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(count))
        tensors = {}
        for n in range(count):
            tensors[f"base_model.model.{n}.lora_A.weight"] = torch.ones(2, 4)
            tensors[f"base_model.model.{n}.lora_B.weight"] = torch.ones(4, 2)
        folder = write(tmp_path / str(count), tensors)

        def attach_twice():
            load_adapter(model, folder)
            load_adapter(model, folder, name="second")

        return calls_of(attach_twice)

    counts = [calls(number) for number in (50, 200, 400, 800)]
    assert counts[3] - counts[2] < 2.2 * (counts[2] - counts[1])


@pytest.mark.parametrize("name", ["", "a.b", "type", "keys", "training", "forward"])
def test_names_that_can_not_be(tmp_path, name):
    with pytest.raises(UsageError, match="name of an adapter"):
        load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny())), name=name)


def test_what_is_no_model(tmp_path):
    with pytest.raises(UsageError, match="not to a dict"):
        load_adapter({}, tmp_path)


def test_a_model_that_has_layers_of_peft_is_refused_by_name(tmp_path):
    model = Tiny()
    model.layers[0].q.__class__ = type("Linear", (nn.Linear,), {"__module__": "peft.tuners.lora.layer"})
    before = snapshot(model)
    with pytest.raises(UnsupportedError, match="PEFT's own") as caught:
        load_adapter(model, write(tmp_path, lora_tensors(Tiny())))
    assert "unload()" in caught.value.cure
    assert_unchanged(model, before)
