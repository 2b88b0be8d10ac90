"""adapter_batch: each row of the batch with an adapter of its own."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from shardload import (
    UsageError,
    adapter_batch,
    disable_adapter,
    set_adapter,
)
from shardload.adapters.batch_rows import BatchRows
from tests.adapters.tiny import (
    TOKENS,
    Tiny,
    logits,
)

BATCH = torch.tensor([[1, 2, 3], [5, 6, 7], [8, 9, 10], [2, 2, 4], [7, 1, 0]])


@pytest.mark.parametrize(
    "names",
    [
        ["a", "b", None, "a", "b"],
        ["b"] * 5,
        [None] * 5,
        ["a", "a", "b", None, None],
        ["b", "a", "a", "a", "b"],
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_row_as_if_it_were_alone(model, names, dtype):
    model.to(dtype)
    rows = [logits(model, {} if name is None else name, BATCH[[row]]) for row, name in enumerate(names)]
    set_adapter(model, {"a": 0.3})
    with torch.no_grad(), adapter_batch(model, names):
        ours = model(BATCH)
    assert ours.dtype == dtype
    assert torch.allclose(
        ours.float(), torch.cat(rows).float(), atol=1e-5 if dtype == torch.float32 else 0.05
    )


def test_gradients_of_a_mixed_batch(model):
    for adapter in ("a", "b"):
        set_adapter(model, adapter)
    factors = [parameter.requires_grad_() for name, parameter in model.named_parameters() if "lora_" in name]
    alone = 0.0
    for row, name in enumerate(["a", "b", None, "a", "b"]):
        with adapter_batch(model, [name]):
            alone = alone + model(BATCH[[row]]).square().sum()
    wanted = torch.autograd.grad(alone, factors)
    with adapter_batch(model, ["a", "b", None, "a", "b"]):
        ours = torch.autograd.grad(model(BATCH).square().sum(), factors)
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(ours, wanted, strict=True))


def test_a_batch_of_another_length(model):
    before = logits(model, "a", BATCH)
    said = r"has 4 rows, and a layer's input has the shape \(5, 3, 8\)"
    with adapter_batch(model, ["a", "b", None, "a"]), pytest.raises(UsageError, match=said):
        model(BATCH)
    assert torch.equal(model(BATCH), before)
    with pytest.raises(UsageError, match="no adapter called 'c' is attached\n  where: attached: a, b"):
        adapter_batch(model, ["a", "c"])


def test_a_model_that_has_the_sequence_first(model):
    class SequenceFirst(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, tokens):
            x = self.inner.embed(tokens).transpose(0, 1)
            for layer in self.inner.layers:
                x = layer(x)
            return self.inner.score(x).transpose(0, 1)

    sequence_first = SequenceFirst(model)
    names = ["b", None, "a"]
    rows = [logits(model, name or {}, BATCH[[row]]) for row, name in enumerate(names)]
    with adapter_batch(model, names):
        assert torch.allclose(sequence_first(BATCH[:3, :2]), torch.cat(rows)[:, :2], atol=1e-5)
    with adapter_batch(model, names, batch_dim=1):
        assert torch.allclose(sequence_first(BATCH[:3]), torch.cat(rows), atol=1e-5)
    model.config = type("Config", (), {"model_type": "chatglm"})
    with adapter_batch(model, names), pytest.raises(UsageError, match="3 rows either way"):
        sequence_first(BATCH[:3])
    with pytest.raises(UsageError, match="batch_dim=2"):
        adapter_batch(model, names, batch_dim=2)


def test_an_adapter_with_a_head_of_its_own(saving):
    whole, plain, base = logits(saving, "whole"), logits(saving, "plain"), Tiny()(TOKENS)
    with adapter_batch(saving, ["whole", "whole"]):
        assert torch.equal(saving(TOKENS), whole)
    assert torch.equal(saving(TOKENS), plain)
    with adapter_batch(saving, ["plain", None]):
        assert torch.allclose(saving(TOKENS), torch.stack([plain[0], base[1]]), atol=1e-5)
    with pytest.raises(UsageError, match="can't be one row's alone"):
        adapter_batch(saving, ["whole", "plain"])
    with pytest.raises(UsageError, match="no weight but 1"):
        set_adapter(saving, {"whole": 0.5})
    set_adapter(saving, "whole")
    with disable_adapter(saving):
        assert torch.equal(saving(TOKENS), base)
        inside = copy.deepcopy(saving)
    assert torch.equal(inside(TOKENS), base)
    assert torch.equal(logits(inside, "whole"), whole)
    assert torch.equal(saving(TOKENS), whole)


class Scales:
    """A term that adds a multiple of the input."""

    def __init__(self, factor):
        self.factor = factor

    def add(self, _layer, _name, _weight, x, out):
        return out + self.factor * x


@pytest.mark.parametrize(
    "names", [("a", "b"), ("b", None, "a", "b"), ("a", "a"), (None, "a", None), ("other", "b")]
)
@pytest.mark.parametrize("dim", [0, 1])
def test_every_row_gets_its_own_adapter_in_its_place(names, dim):
    layer = SimpleNamespace(lora_terms={"a": Scales(1.0), "b": Scales(10.0)})
    shape = (len(names), 7, 4) if dim == 0 else (7, len(names), 4)
    x, out = torch.randn(shape), torch.randn(shape)
    factors = torch.tensor([{"a": 1.0, "b": 10.0}.get(name, 0.0) for name in names])
    factors = factors.view(-1, 1, 1) if dim == 0 else factors.view(1, -1, 1)
    rows = BatchRows.of(names, dim)
    torch.testing.assert_close(rows.add(layer, x, out), out + factors * x)
    assert rows.alike is (len(set(names)) == 1)
