"""PEFT as the oracle of a model that runs: weighted adapters, a batch of several, counts."""

from __future__ import annotations

import warnings

import pytest
import torch

import shardload
from shardload import (
    adapter_batch,
    attach_lora,
    disable_adapter,
    load_adapter,
    save_adapter,
    set_adapter,
    trainable_parameters,
)
from tests.adapters.test_peft_oracle import LINEARS, save, trained
from tests.adapters.tiny import TOKENS, Tiny, error

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
        load_adapter(model, tmp_path / name, name=name, trainable=True)
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
    load_adapter(model, save(wrapped, tmp_path), trainable=True)
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


TARGETS = {
    "names": {"target_modules": ["q", "down"]},
    "whole paths": {"target_modules": ["layers.0.up", "score"]},
    "expression": {"target_modules": r"layers\.[01]\.(q|up)"},
    "all-linear": {"target_modules": "all-linear"},
    "excluded": {"target_modules": ["q", "up", "down"], "exclude_modules": ["layers.1.q", "up"]},
    "excluded by expression": {"target_modules": "all-linear", "exclude_modules": r".*\.(up|down)"},
    "one layer": {"target_modules": ["q", "up"], "layers_to_transform": 1, "layers_pattern": "layers"},
    "layers": {
        "target_modules": ["q", "up"],
        "layers_to_transform": [0, 1],
        "layers_pattern": ["h", "layers"],
    },
    "saved": {"target_modules": ["q", "score"], "modules_to_save": ["score"]},
    "embedding": {"target_modules": ["embed", "q"]},
    "dora": {"target_modules": ["q", "up"], "use_dora": True},
    "biases": {"target_modules": ["q", "up"], "bias": "all", "lora_bias": True},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"q": 2, r"layers\.\d\.up": 3},
        "alpha_pattern": {"down": 5},
        "use_rslora": True,
        "bias": "lora_only",
    },
}
OURS = {
    "target_modules": "targets",
    "exclude_modules": "exclude",
    "layers_to_transform": "layers",
}


def attached(settings, dtype=torch.float64, model=None):
    """PEFT's and ours: the same settings on the same base, the same random values in all that trains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(
            Tiny(dtype) if model is None else model(), peft.LoraConfig(r=4, lora_alpha=10, **settings)
        )
    ours = Tiny(dtype) if model is None else model()
    attach_lora(ours, 4, 10, **{OURS.get(key, key): value for key, value in settings.items()})
    theirs = trained_parameters(wrapped.base_model.model)
    mine = dict(ours.named_parameters())
    assert {name for name, parameter in mine.items() if parameter.requires_grad} == theirs.keys()
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in theirs.items():
            assert parameter.shape == mine[name].shape
            assert parameter.dtype == mine[name].dtype
            parameter.add_(torch.randn(parameter.shape, generator=random, dtype=parameter.dtype) / 4)
            mine[name].copy_(parameter)
    return wrapped, ours


def trained_parameters(model):
    """What trains in a PEFT model, under our names."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = name.replace("base_layer.", "").replace("modules_to_save.default.", "")
            name = name.replace("lora_embedding_A.default", "lora_A.default.weight")
            found[name.replace("lora_embedding_B.default", "lora_B.default.weight")] = parameter
    return found


@pytest.mark.parametrize("case", TARGETS)
def test_what_is_targeted_and_trains(case):
    wrapped, ours = attached(TARGETS[case])
    assert error(ours.eval()(TOKENS), wrapped.eval()(TOKENS)) <= 1e-10
    assert trainable_parameters(ours) == wrapped.get_nb_trainable_parameters()
    ours.train()(TOKENS).square().mean().backward()
    wrapped.train()(TOKENS).square().mean().backward()
    mine = dict(ours.named_parameters())
    for name, parameter in trained_parameters(wrapped.base_model.model).items():
        assert error(mine[name].grad, parameter.grad) <= 1e-9, name


def test_all_linear_of_a_causal_model_leaves_the_head():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=32, n_embd=8, n_layer=2, n_head=2, n_positions=16)

    def model():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config)

    wrapped, ours = attached({"target_modules": "all-linear"}, model=model)
    assert type(ours.lm_head) is torch.nn.Linear
    tokens = torch.arange(8)[None]
    assert error(ours.eval()(tokens).logits, wrapped.eval()(tokens).logits) <= 1e-5


@pytest.mark.parametrize("case", TARGETS)
def test_what_is_saved_peft_loads(tmp_path, case):
    _, ours = attached(TARGETS[case])
    save_adapter(ours, tmp_path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        wrapped = peft.PeftModel.from_pretrained(Tiny(torch.float64), tmp_path).eval()
    assert not [one for one in said if "missing" in str(one.message) or "unexpected" in str(one.message)]
    assert error(ours.eval()(TOKENS), wrapped(TOKENS)) <= 1e-10
    theirs = {path for path, module in wrapped.base_model.model.named_modules() if hasattr(module, "scaling")}
    assert theirs == {path for path, module in ours.named_modules() if hasattr(module, "lora_terms")}


def test_a_merged_linear_is_saved_as_the_pair_that_it_equals(tmp_path):
    base = torch.nn.Sequential(torch.nn.Linear(6, 12)).double()
    random = torch.Generator().manual_seed(0)
    state = {
        "0.lora_A": torch.randn(4, 6, generator=random, dtype=torch.float64),
        "0.lora_B": torch.randn(8, 2, generator=random, dtype=torch.float64),
    }
    torch.save(state, tmp_path / "merged.pt")
    load_adapter(base, tmp_path / "merged.pt", alpha=6, enable_lora=[True, False, True])
    plain = torch.nn.Sequential(torch.nn.Linear(6, 12)).double()
    plain.load_state_dict({name: base.state_dict()[name] for name in ("0.weight", "0.bias")})
    save_adapter(base, tmp_path / "saved")
    wrapped = peft.PeftModel.from_pretrained(plain, tmp_path / "saved")
    x = torch.randn(3, 6, generator=random, dtype=torch.float64)
    assert error(base(x), wrapped(x)) <= 1e-12


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "pissa", "target_modules": ["q", "up"]},
        {"init_lora_weights": "olora", "target_modules": ["q", "up"], "use_rslora": True},
        {"trainable_token_indices": {"embed": [1, 5, 9]}},
        {"trainable_token_indices": {"embed": [2]}, "modules_to_save": ["score"], "use_dora": True},
    ],
)
def test_what_peft_saved_is_saved_again(tmp_path, settings):
    """From PEFT to ours and back: PEFT computes the same from our file."""
    # PEFT computes PiSSA and OLoRA in float32 only.
    dtype, limit = (torch.float32, 1e-5) if "init_lora_weights" in settings else (torch.float64, 1e-10)
    wrapped = trained(Tiny(dtype), settings)
    wanted = wrapped(TOKENS)
    ours = Tiny(dtype)
    load_adapter(ours, save(wrapped, tmp_path / "theirs"))
    assert error(ours(TOKENS), wanted) <= limit
    save_adapter(ours, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(Tiny(dtype), tmp_path / "ours").eval()
    assert error(again(TOKENS), wanted) <= limit
    back = Tiny(dtype)
    load_adapter(back, tmp_path / "ours")
    assert error(back(TOKENS), wanted) <= limit


def test_a_changed_base_under_a_forward_of_its_own_is_declined(tmp_path):
    """`down` doubles what its weight gives: PiSSA's residual is doubled with it, which no adapter can be."""
    wrapped = trained(Tiny(), {"init_lora_weights": "pissa", "target_modules": ["down"]})
    with pytest.raises(shardload.UnsupportedError, match="is a Scaled, whose own forward may do more"):
        load_adapter(Tiny(), save(wrapped, tmp_path))
