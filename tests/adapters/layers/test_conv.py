"""Convolutions: the adapter's change of the output is the convolution with the change of the kernel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import attach_lora
from shardload.adapters.adapter import LoraEntry, Scaling
from shardload.adapters.layers.conv import Conv, ConvMatrixTerm, ConvTerm
from shardload.adapters.layers.term import Factors
from shardload.errors import UnsupportedError
from shardload.tensor_ref import Span, TensorRef
from tests.adapters.tiny import randomised

CONVS = {
    "1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=2, dilation=(1, 2), bias=False), (2, 4, 9, 8)),
    "3d": (lambda: nn.Conv3d(4, 6, 2), (1, 4, 4, 3, 5)),
    "1 wide": (lambda: nn.Conv2d(4, 6, 1), (2, 4, 3, 3)),
}


def adapted(make, **options):
    torch.manual_seed(0)
    model = nn.Sequential(make()).double().eval()
    attach_lora(model, 2, 6, ["0"], **options)
    return randomised(model)[0]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", CONVS)
def test_the_output_is_that_of_the_changed_kernel(kind, dora):
    make, shape = CONVS[kind]
    layer = adapted(make, use_dora=dora)
    x = torch.randn(*shape, dtype=torch.float64)
    with torch.no_grad():
        term, factors = layer.lora_terms["default"], layer.lora_factors("default")
        wanted = make().double()
        wanted.load_state_dict(
            {name: value for name, value in layer.state_dict().items() if "lora" not in name}
        )
        wanted.weight.copy_(term.changed(layer.weight, factors))
        torch.testing.assert_close(layer(x), wanted(x))
        rows = slice(1, 4)
        torch.testing.assert_close(
            term.changed(layer.weight[rows], factors, 1.0, rows, tuple(layer.weight.shape)),
            wanted.weight[rows],
        )


def test_with_groups_the_output_is_b_after_a_and_no_merge():
    layer = adapted(lambda: nn.Conv1d(4, 6, 3, groups=2))
    x = torch.randn(2, 4, 9, dtype=torch.float64)
    term, factors = layer.lora_terms["default"], layer.lora_factors("default")
    with torch.no_grad():
        base = nn.functional.conv1d(x, layer.weight, layer.bias, groups=2)
        inner = nn.functional.conv1d(x, factors.a)
        torch.testing.assert_close(
            layer(x), base + term.scale * nn.functional.conv1d(inner, factors.b, groups=2)
        )
    assert "groups = 2" in Conv().unmergeable(layer, term)
    assert "padding_mode" in Conv().unmergeable(nn.Conv1d(4, 6, 3, padding_mode="circular"), term)
    assert Conv().unmergeable(nn.Conv1d(4, 6, 3), term) is None


def entry(a, b, **more):
    def ref(name, shape):
        return TensorRef(name, "F32", shape, "adapter", Span(0, 4))

    magnitude = ref("m", more.pop("magnitude")) if "magnitude" in more else None
    return LoraEntry("conv", ref("a", a), ref("b", b), Scaling(6.0), magnitude=magnitude, **more)


def test_two_dimensions_are_loralib_s_and_others_peft_s():
    conv = nn.Conv2d(4, 6, 3)
    reading = Conv().read(conv, entry((2, 4, 3, 3), (6, 2, 1, 1)))
    assert type(reading.term) is ConvTerm
    assert (reading.term.rank, reading.term.scale) == (2, 3.0)
    assert reading.shapes["a"] == (2, 4, 3, 3)
    assert reading.shapes["magnitude"] == (1, 6, 1, 1)
    reading = Conv().read(conv, entry((6, 12), (18, 6)))
    assert type(reading.term) is ConvMatrixTerm
    assert reading.shapes == {"a": (6, 12), "b": (18, 6)}
    assert "loralib has no DoRA" in Conv().unfit(conv, entry((6, 12), (18, 6), magnitude=(6,)))
    assert "rank 3 is not a multiple" in Conv().unfit(
        nn.Conv2d(4, 6, 3, groups=2), entry((3, 4, 3, 3), (6, 1, 1, 1))
    )
    assert Conv().unfit(conv, entry((2, 4, 3, 3), (6, 2, 1, 1))) is None


@pytest.mark.parametrize("rows", [slice(0, 6), slice(0, 1), slice(2, 5), slice(5, 6)])
def test_rows_of_loralib_s_matrices_are_rows_of_the_whole(rows):
    term = ConvMatrixTerm(2, 3.0)
    factors = Factors(torch.randn(6, 12).double(), torch.randn(18, 6).double())
    whole = term.delta(factors, (6, 4, 3, 3))
    torch.testing.assert_close(whole, (3.0 * factors.b @ factors.a).view(6, 4, 3, 3))
    torch.testing.assert_close(term.delta(factors, (6, 4, 3, 3), rows), whole[rows])
    with pytest.raises(UnsupportedError, match="no place"):
        term.stored(factors)
