"""Which adapters run: for the model, and for a `with` block."""

from __future__ import annotations

import pytest
import torch

from shardload import (
    UsageError,
    active_adapters,
    adapter_batch,
    delete_adapter,
    disable_adapter,
    set_adapter,
)
from tests.adapters.tiny import (
    TOKENS,
    Tiny,
    assert_unchanged,
    by_hand,
    logits,
    lora_tensors,
    snapshot,
)


def test_a_name_names_weights_and_the_plain_base(model):
    tensors = lora_tensors(model)
    assert torch.allclose(logits(model, "a"), by_hand(Tiny(), tensors, 3.0), atol=1e-5)
    assert active_adapters(model) == {"a": 1.0}
    other = lora_tensors(Tiny(), names=("q", "down"), rank=3, seed=5)
    weighted = {key: value * (0.7 if "lora_B" in key else 1) for key, value in tensors.items()}
    assert torch.allclose(logits(model, {"a": 0.7}), by_hand(Tiny(), weighted, 3.0), atol=1e-5)
    joined = {}
    for key, value in tensors.items():
        joined[key] = value
        if key in other:
            dim, factor = (0, 1.0) if "lora_A" in key else (1, -0.5 * 2.0 / 3.0)
            joined[key] = torch.cat([value, other[key] * factor], dim)
    assert torch.allclose(logits(model, {"a": 1, "b": -0.5}), by_hand(Tiny(), joined, 3.0), atol=1e-5)
    assert torch.equal(logits(model, ["a", "b"]), logits(model, {"a": 1.0, "b": 1.0}))
    assert torch.equal(logits(model, {}), Tiny()(TOKENS))
    assert active_adapters(model) == {}


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("c", "'c' is attached"),
        (["a", "c", "d"], "'c', 'd' is attached"),
        ({"a": float("nan")}, "finite number"),
        ({"a": float("inf")}, "finite number"),
        ({"a": True}, "finite number"),
        ({"a": "1"}, "finite number"),
        (3, "not a int"),
        (None, "not a NoneType"),
    ],
)
def test_what_can_not_be_set(model, which, said):
    before = logits(model, {"b": 2})
    with pytest.raises(UsageError, match=said):
        set_adapter(model, which)
    assert active_adapters(model) == {"b": 2.0}
    assert torch.equal(model(TOKENS), before)


@pytest.mark.parametrize(
    "call", [lambda m: set_adapter(m, {}), disable_adapter, lambda m: delete_adapter(m, "a")]
)
def test_the_module_that_adapters_were_attached_to(model, call):
    for other in (Tiny(), model.layers):
        with pytest.raises(UsageError, match="no adapter is attached to this"):
            call(other)


def test_disabled_inside_the_block_alone(model):
    wanted, base = logits(model, {"a": 0.5, "b": 1}), Tiny()(TOKENS)
    scope = disable_adapter(model)
    for _ in range(2):
        with scope:
            assert torch.equal(model(TOKENS), base)
            assert active_adapters(model) == {}
            with scope, adapter_batch(model, ["a", "a"]):
                assert active_adapters(model) == {"a": 1.0}
                assert torch.allclose(model(TOKENS), by_hand(Tiny(), lora_tensors(model), 3.0), atol=1e-5)
            assert torch.equal(model(TOKENS), base)
        assert torch.equal(model(TOKENS), wanted)


def test_an_exception_inside_the_block(saving):
    wanted = logits(saving, "whole")
    before = snapshot(saving)

    def fail():
        with disable_adapter(saving):
            assert torch.equal(saving(TOKENS), Tiny()(TOKENS))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert_unchanged(saving, before)
    assert torch.equal(saving(TOKENS), wanted)


def test_inside_a_block_the_model_is_not_switched(model):
    with disable_adapter(model), pytest.raises(UsageError, match="inside disable_adapter"):
        set_adapter(model, "b")
    with adapter_batch(model, ["b", None]):
        with pytest.raises(UsageError, match="runs with the adapter 'b'"):
            delete_adapter(model, "b")
        delete_adapter(model, "a")
        assert model(TOKENS).isfinite().all()
    assert active_adapters(model) == {}
    with disable_adapter(model):
        delete_adapter(model, "b")
    with pytest.raises(UsageError, match="no adapter is attached"):
        disable_adapter(model)


def test_an_active_adapter_is_deleted(model):
    wanted = logits(model, "b")
    set_adapter(model, ["a", "b"])
    delete_adapter(model, "a")
    assert active_adapters(model) == {"b": 1.0}
    assert torch.equal(model(TOKENS), wanted)
    with pytest.raises(UsageError, match="'a' is attached\n  where: attached: b"):
        delete_adapter(model, "a")
    delete_adapter(model, "b")
    plain = Tiny()
    assert torch.equal(model(TOKENS), plain(TOKENS))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]


@pytest.mark.parametrize("names", ["ab", [], None, {"a": 1}])
def test_what_is_no_list_of_rows(model, names):
    with pytest.raises(UsageError, match="adapter_batch takes"):
        adapter_batch(model, names)
