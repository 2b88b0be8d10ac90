"""PEFT as the oracle of a model that runs: weighted adapters, a batch of several, counts."""

from __future__ import annotations

import warnings

import pytest
import torch

from shardload import (
    adapter_batch,
    disable_adapter,
    load_adapter,
    set_adapter,
    trainable_parameters,
)
from tests.adapters.test_peft_oracle import LINEARS, error, save, trained
from tests.adapters.tiny import TOKENS, Tiny

peft = pytest.importorskip("peft")


def two(tmp_path, dtype=torch.float64):
    """A PEFT model with the adapters "a" and "b", and ours with the same."""
    wrapped = trained(Tiny(dtype), {})
    save(wrapped, tmp_path / "a")
    other = trained(
        Tiny(dtype), {"r": 3, "target_modules": ["q", "down"], "use_rslora": True, "lora_alpha": 2}, seed=8
    )
    save(other, tmp_path / "b")
    wrapped = peft.PeftModel.from_pretrained(Tiny(dtype), tmp_path / "a", adapter_name="a")
    wrapped.load_adapter(tmp_path / "b", adapter_name="b")
    model = Tiny(dtype)
    for name in ("a", "b"):
        load_adapter(model, tmp_path / name, name=name)
    return wrapped.eval(), model


@pytest.mark.parametrize("weights", [{"a": 0.7, "b": 0.3}, {"a": -0.5, "b": 2.0}, {"a": 1.0, "b": 1.0}])
def test_weights(tmp_path, weights):
    """ "cat" is the one combination of PEFT that is exactly the weighted sum of the deltas, whatever the ranks.

    The rsLoRA must not come first: PEFT 0.21 takes the new adapter's settings from the first, and scales it again.
    """
    wrapped, model = two(tmp_path)
    wrapped.add_weighted_adapter(list(weights), list(weights.values()), "sum", combination_type="cat")
    wrapped.set_adapter("sum")
    set_adapter(model, weights)
    assert error(model(TOKENS), wrapped(TOKENS)) <= 1e-10


@pytest.mark.parametrize(
    "names", [["a", "b", None, "a"], ["b", "b", "b", "b"], [None, "a", "a", None], ["b", "a", None, "b"]]
)
def test_a_batch_of_several(tmp_path, names):
    wrapped, model = two(tmp_path)
    tokens = torch.cat([TOKENS, TOKENS.flip(0) - 1])
    wanted = wrapped(tokens, adapter_names=["__base__" if name is None else name for name in names])
    with adapter_batch(model, names):
        assert error(model(tokens), wanted) <= 1e-10
    with disable_adapter(model), wrapped.disable_adapter():
        assert error(model(tokens), wrapped(tokens)) == 0


@pytest.mark.parametrize(
    "settings",
    [{}, {"bias": "all"}, {"bias": "lora_only", "lora_bias": True}, {"modules_to_save": ["score", "norm"]}],
)
def test_counts(tmp_path, settings, capsys):
    wrapped = trained(Tiny(), settings)
    model = Tiny()
    load_adapter(model, save(wrapped, tmp_path))
    wrapped.print_trainable_parameters()
    assert str(trainable_parameters(model)) == capsys.readouterr().out.strip()
    assert trainable_parameters(model) == wrapped.get_nb_trainable_parameters()
    set_adapter(model, {})
    assert trainable_parameters(model) == (0, wrapped.get_nb_trainable_parameters()[1])


def test_the_active_one_of_several_trains(tmp_path):
    wrapped, model = two(tmp_path)
    for name in ("b", "a"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped.set_adapter(name)
        set_adapter(model, name)
        assert trainable_parameters(model) == wrapped.get_nb_trainable_parameters()
    assert LINEARS == ["q", "up", "down"]
