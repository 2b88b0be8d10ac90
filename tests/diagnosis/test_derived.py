"""E-DERIVED: what is computed about a weight, or is a part of it, is never loaded as the weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from shardload import MismatchError, from_pretrained, open_checkpoint
from tests.diagnosis.headers import case_of, findings_of
from tests.tiny import random_state, save_safetensors

MODEL = {
    f"layers.{n}.{name}": shape
    for n in range(3)
    for name, shape in {"lin.weight": (6, 6), "lin.bias": (6,), "two.weight": (8, 6)}.items()
} | {"out.weight": (3, 6)}


@pytest.mark.parametrize(
    "part", ["weight_orig", "weight_v", "weight_grad", "parametrizations.weight.original"]
)
def test_a_part_of_a_weight_is_no_other_name_of_it(part):
    stored = {key.replace("lin.weight", f"lin.{part}"): shape for key, shape in MODEL.items()}
    case = case_of(stored, MODEL)
    assert list(findings_of(stored, MODEL)) == ["E-DERIVED"]
    assert not case.solution.key_map.rules
    assert list(findings_of(MODEL, stored)) == ["E-DERIVED"]


@pytest.mark.parametrize("words", ["exp_avg", "momentum_buffer", "grads", "fisher"])
@pytest.mark.parametrize("where", ["{words}.{key}", "{key}.{words}"])
def test_numbers_about_weights_are_none(words, where):
    stored = {where.format(words=words, key=key): shape for key, shape in MODEL.items()}
    assert list(findings_of(stored, MODEL)) == ["E-DERIVED"]
    assert not case_of(stored, MODEL).solution.key_map.rules


def test_twins_that_both_sides_have_or_whose_word_says_more_are_paired():
    shapes = {f"h.{n}.{name}": (6, 6) for n in range(3) for name in ("fc.weight_mask", "delta.weight")}
    moved = {f"net.{key}": shape for key, shape in shapes.items()}
    assert list(findings_of(moved, shapes)) == ["E-WRAP"]
    letters = {f"attn.weight_{name}": (6, 6 + n) for n, name in enumerate("qkv")}
    named = {f"attn.{name}_proj.weight": (6, 6 + n) for n, name in enumerate("qkv")}
    assert list(findings_of(letters, named)) == ["E-RENAME"]


def _weight_norm(model: nn.Module) -> nn.Module:
    parametrizations.weight_norm(model.fc)
    return model


def _pruned(model: nn.Module) -> nn.Module:
    prune.random_unstructured(model.fc, "weight", amount=0.5)
    return model


def _spectral(model: nn.Module) -> nn.Module:
    parametrizations.spectral_norm(model.fc)
    return model


class Fc(nn.Module):
    def __init__(self, config: object = None) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 6)


@pytest.mark.parametrize("made", [_weight_norm, _pruned, _spectral])
def test_what_torch_makes_of_a_weight_has_no_cure_that_can_be_typed(tmp_path, made):
    torch.manual_seed(0)
    save_safetensors(made(Fc()).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(MismatchError) as caught:
        from_pretrained(tmp_path, model_class=Fc, progress=False)
    assert caught.value.code == "E-DERIVED"
    assert "no cure is known" in caught.value.cure
    assert "remove_parametrizations" in caught.value.cure


@pytest.mark.parametrize("name", ["exp_avg", "grads", "momentum_buffer"])
def test_a_dict_of_numbers_about_weights_is_no_state_dict(tmp_path, name):
    state = random_state(Fc())
    torch.save({name: state, "step": 3}, tmp_path / "alone.pt")
    with pytest.raises(MismatchError) as caught:
        from_pretrained(tmp_path / "alone.pt", model_class=Fc, progress=False)
    assert caught.value.code == "E-DERIVED"
    torch.save({name: random_state(Fc(), seed=1), "net": state}, tmp_path / "beside.pt")
    checkpoint = open_checkpoint(tmp_path / "beside.pt")
    assert all(torch.equal(checkpoint.read(key), value) for key, value in state.items())
