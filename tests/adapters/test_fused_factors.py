"""Factors of tensors that are made of several adapted layers: their product is the change of the parts, moved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from shardload.adapters.adapter import LoraEntry, Scaling
from shardload.adapters.fused_factors import Factored, fused
from shardload.adapters.published import header
from shardload.keymap.assembly import assemble, view_of
from shardload.keymap.traced import TracedTensor

SHAPES = {"q": (8, 6), "k": (4, 6), "v": (4, 6)}


def layers(ranks, shapes=SHAPES):
    """Return layers by name and their factors; a rank of 0 is a layer without an adapter."""
    generator = torch.Generator().manual_seed(0)
    found, factors = {}, {}
    for name, rank in ranks.items():
        out, into = shapes[name]
        entry = None
        if rank:
            factors[f"{name}.a"] = torch.randn(rank, into, generator=generator)
            factors[f"{name}.b"] = torch.randn(out, rank, generator=generator)
            a, b = (header(f"{name}.{part}", tuple(factors[f"{name}.{part}"].shape)) for part in "ab")
            entry = LoraEntry(name, a, b, Scaling(fixed=1.0))
        found[name] = Factored(header(name, (out, into)), entry)
    return found, factors


def product(entry, factors):
    def read(ref):
        return view_of(factors[ref.name], header(ref.name, tuple(factors[ref.name].shape)), ref)

    a, b = assemble(entry.a, read), assemble(entry.b, read)
    if not entry.experts_last:
        return b @ a
    experts = b.shape[2]
    return torch.einsum("ore,eri->eoi", b, a.view(experts, -1, a.shape[1]))


def deltas(found, factors):
    return {
        name: factors[f"{name}.b"] @ factors[f"{name}.a"] if layer.entry else torch.zeros(layer.weight.shape)
        for name, layer in found.items()
    }


MOVES = {
    "rows below one another": lambda q, k, v: torch.cat([q, k, v]),
    "some rows": lambda q, k, v: torch.cat([q[2:5], v]),
    "every other row": lambda q, k, v: q.view(2, 4, 6).transpose(0, 1).reshape(8, 6),
    "heads in turn": lambda q, k, v: torch.cat(
        [q.view(2, 4, 6), k.view(2, 2, 6), v.view(2, 2, 6)], 1
    ).reshape(16, 6),
    "transposed": lambda q, k, v: torch.cat([k, v]).t(),
    "stacked": lambda q, k, v: torch.stack([k, v]),
    "stacked pairs": lambda q, k, v: torch.stack([torch.cat([k, v]), q]),
    "stacked, then joined": lambda q, k, v: torch.cat([torch.stack([k, v]), torch.stack([v, k])], 1),
    "one entry": lambda q, k, v: torch.stack([q, torch.cat([k, v])])[1:],
}


@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 3, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("move", MOVES)
def test_the_factors_of_the_whole_give_what_becomes_of_the_deltas(move, ranks):
    found, factors = layers(dict(zip(SHAPES, ranks, strict=True)))
    traced = {name: TracedTensor(layer.weight) for name, layer in found.items()}
    whole = MOVES[move](**traced).ref
    entry = fused(whole, found)
    wanted = MOVES[move](**deltas(found, factors))
    got = product(entry, factors)
    got = got.mT if move == "transposed" else got  # a layer that is stored so takes the same factors
    torch.testing.assert_close(got, wanted)


def test_what_is_no_plain_lora_of_rows_is_told():
    found, _ = layers({"q": 2, "k": 2, "v": 2})
    q, k, v = (TracedTensor(layer.weight) for layer in found.values())
    assert fused(torch.cat([q[:, :3], q[:, :3]], 1).ref, found) == "parts that are no rows"
    scaled = dict(found, k=replace(found["k"], entry=replace(found["k"].entry, scaling=Scaling(fixed=2.0))))
    assert "scales parts differently" in fused(torch.cat([q, k]).ref, scaled)
    dora = dict(found, k=replace(found["k"], entry=replace(found["k"].entry, magnitude=header("m", (4,)))))
    assert "DoRA" in fused(torch.cat([k, v]).ref, dora)
