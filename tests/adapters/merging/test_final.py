"""merge(final=True): a plain model comes out, ready for the next adapter, as PEFT's merge_and_unload gives one."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import shardload
from shardload import (
    UnsupportedError,
    UsageError,
    attach_lora,
    load_adapter,
    merge,
    save,
    set_adapter,
    unmerge,
)
from tests.adapters import tiny
from tests.adapters.merging.merged_models import bits, loaded
from tests.adapters.tiny import TOKENS


def made(where):
    """A base in float32: what a merge rounds away is too small to see."""
    return loaded(where, dtype="float32")


def values(model):
    return {name: value for name, (_, *value) in bits(model).items()}


def test_the_model_is_a_plain_one(base, adapter):
    model, plain = made(base), made(base)
    load_adapter(model, adapter)
    attached = model(TOKENS)
    report = merge(model, final=True)
    assert torch.allclose(model(TOKENS), attached, atol=1e-5)
    assert not torch.equal(attached, plain(TOKENS))
    assert report.copied_bytes == 0
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [type(each) for each in model.modules()] == [type(each) for each in plain.modules()]
    wanted = {name: each.requires_grad for name, each in plain.named_parameters()}
    assert {name: each.requires_grad for name, each in model.named_parameters()} == wanted
    with pytest.raises(UsageError, match="no adapter"):
        unmerge(model)


def test_it_changes_the_same_bits_as_a_merge_that_can_be_undone(base, adapter):
    one, other = made(base), made(base)
    for model, final in ((one, True), (other, False)):
        load_adapter(model, adapter)
        merge(model, final=final, keep_copies=True)
    assert values(one) == values(other)


def test_the_next_adapter_goes_on_top(base, adapter, tmp_path):
    model = made(base)
    load_adapter(model, adapter)
    merge(model, final=True)
    merged = model(TOKENS)
    save(model, tmp_path / "out")
    attach_lora(model, targets=["q"], init=False, seed=1, name="next")
    assert not torch.equal(model(TOKENS), merged)
    shardload.save_adapter(model, tmp_path / "next", name="next")
    again = made(tmp_path / "out")
    assert torch.equal(again(TOKENS), merged)
    load_adapter(again, tmp_path / "next")
    assert torch.equal(again(TOKENS), model(TOKENS))


def test_what_an_adapter_replaces_stays(base, tmp_path):
    model = made(base)
    attach_lora(model, targets=["q"], init=False, seed=0, modules_to_save=["score"], bias="lora_only")
    with torch.no_grad():
        for parameter in shardload.adapters.attach.adapters_of(model).attached["default"].parameters():
            parameter.add_(0.01)
    attached = model(TOKENS)
    merge(model, final=True)
    assert torch.allclose(model(TOKENS), attached, atol=1e-5)
    assert model.state_dict().keys() == made(base).state_dict().keys()
    assert isinstance(model.score.weight, nn.Parameter)


def test_adapters_that_are_not_active_are_taken_off_too(base, adapter):
    model = made(base)
    load_adapter(model, adapter, name="a")
    attach_lora(model, targets=["q"], init=False, seed=1, name="b")
    set_adapter(model, {"a": 0.5})
    attached = model(TOKENS)
    merge(model, final=True)
    assert torch.allclose(model(TOKENS), attached, atol=1e-5)
    assert not [name for name in model.state_dict() if "lora" in name]


def test_a_merge_that_is_refused_takes_nothing_off(base, adapter, monkeypatch):
    from shardload.adapters.merging import in_memory

    model = made(base)
    load_adapter(model, adapter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr(in_memory, "_why_not", lambda module, term: "is of a kind that can't be merged")
    with pytest.raises(UnsupportedError):
        merge(model, final=True)
    assert list(shardload.active_adapters(model)) == ["default"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_equals_merge_and_unload(base, adapter):
    peft = pytest.importorskip("peft")
    model = made(base)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": ["q", "up"]}))
    theirs = peft.PeftModel.from_pretrained(made(base), str(adapter)).merge_and_unload()
    load_adapter(model, adapter)
    merge(model, final=True)
    wanted = theirs.state_dict()
    assert model.state_dict().keys() == wanted.keys()
    assert all(torch.allclose(value, wanted[name], atol=1e-6) for name, value in model.state_dict().items())
    assert tiny.Tiny is type(theirs)
