"""LoraTerm: what an adapter does to the output is what it does to the weight, for every row and every weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import attach_lora
from shardload.adapters.layers.linear import LinearTerm
from shardload.adapters.layers.term import DORA_CACHE, Factors, LoraTerm, dora_factor


def factors(*, dora=False, bias=False):
    random = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    return Factors(draw(2, 5), draw(7, 2), draw(7) if bias else None, draw(7).abs() + 1 if dora else None)


BASE = torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("weight", [1.0, 0.5, -2.0])
def test_the_changed_weight_is_the_formula(weight):
    term, given = LinearTerm(2, 3.0), factors()
    assert torch.equal(term.delta(given, (7, 5)), (given.b @ given.a) * 3.0)
    torch.testing.assert_close(term.changed(BASE, given, weight), BASE + weight * 3.0 * given.b @ given.a)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_with_dora_every_row_has_the_length_of_its_magnitude(weight):
    term, given = LinearTerm(2, 3.0), factors(dora=True)
    full = BASE + 3.0 * given.b @ given.a
    full = full / full.norm(dim=1, keepdim=True) * given.magnitude[:, None]
    torch.testing.assert_close(term.changed(BASE, given, weight), BASE + weight * (full - BASE))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rows", [slice(0, 3), slice(3, 7), slice(2, 3)])
def test_rows_are_the_rows_of_the_whole(dora, rows):
    term, given = LinearTerm(2, 3.0), factors(dora=dora)
    whole = term.changed(BASE, given, 0.5)
    part = term.changed(BASE[rows], given, 0.5, rows, (7, 5))
    torch.testing.assert_close(part, whole[rows])
    norm = term.norm_squares(BASE, term.delta(given, (7, 5))).sqrt()
    torch.testing.assert_close(term.changed(BASE[rows], given, 0.5, rows, (7, 5), norm), whole[rows])


def test_factors_are_cast_together_and_what_is_not_there_stays_away():
    half = factors(dora=True).to(torch.float16)
    assert {part.dtype for part in (half.a, half.b, half.magnitude)} == {torch.float16}
    assert half.bias is None


def test_tensors_are_stored_as_peft_names_them():
    rank, tensors = LinearTerm(2, 3.0).stored(factors(dora=True, bias=True))
    assert rank == 2
    assert list(tensors) == ["lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector"]
    assert list(LinearTerm(2, 3.0).stored(factors())[1]) == ["lora_A.weight", "lora_B.weight"]


def test_what_a_kind_of_layer_has_to_say_is_not_guessed():
    with pytest.raises(NotImplementedError):
        LoraTerm(2, 1.0).delta(factors(), (7, 5))
    with pytest.raises(NotImplementedError):
        LoraTerm(2, 1.0).add(None, "", 1.0, BASE, BASE)


def test_the_norm_of_dora_is_kept_until_something_changes():
    model = nn.Sequential(nn.Linear(5, 7)).double().eval()
    attach_lora(model, 2, 6, ["0"], use_dora=True, init=False)
    layer = model[0]
    term = layer.lora_terms["default"]

    def wanted():
        given = layer.lora_factors("default")
        full = layer.weight + term.scale * given.b @ given.a
        return given.magnitude.reshape(-1) / full.norm(dim=1)

    with torch.no_grad():
        torch.testing.assert_close(dora_factor(layer, "default", term, layer.weight), wanted())
        kept = dora_factor(layer, "default", term, layer.weight)
        assert dora_factor(layer, "default", term, layer.weight) is kept
        for tensor in (
            layer.weight,
            layer.lora_factors("default").a,
            layer.lora_factors("default").magnitude,
        ):
            tensor.mul_(1.5)
            now = dora_factor(layer, "default", term, layer.weight)
            torch.testing.assert_close(now, wanted())
    assert vars(layer)[DORA_CACHE]["default"][1].requires_grad is False
