"""Blocks that are kept whole, and what has to lie on one device."""

from __future__ import annotations

import torch
from torch import nn

from shardload import build_shell
from shardload.model.blocks import blocks_of, groups_of, kept_whole
from tests.tiny import Block, Net


def paths(model: nn.Module) -> list[list[str]]:
    return [[name for unit in group.units for name in unit.names] for group in groups_of(model)]


class Gpt(nn.Module):
    """Two embeddings that are added up, a table of the model's own, blocks, a norm, and a tied head."""

    _no_split_modules = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Module()
        self.trunk.wte, self.trunk.wpe = nn.Embedding(7, 4), nn.Embedding(5, 4)
        self.trunk.h = nn.ModuleList(Block(4) for _ in range(2))
        self.trunk.rotary = nn.Module()
        self.trunk.rotary.register_buffer("freq", torch.ones(3), persistent=False)
        self.trunk.scale = nn.Parameter(torch.ones(4))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.trunk.wte.weight


def test_units_in_order_with_what_comes_first_in_front_and_ties_together():
    assert paths(Gpt()) == [
        ["trunk.scale"],
        ["trunk.rotary.freq"],  # a module without a forward is not called
        ["trunk.wte", "trunk.wpe", "head"],
        ["trunk.h.0"],
        ["trunk.h.1"],
        ["norm"],
    ]


def test_every_tensor_stands_once_under_all_of_its_names():
    model = build_shell(Gpt).model
    tensors = [names for group in groups_of(model) for names in group.tensors]
    named = [name for names in tensors for name in names]
    wanted = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    wanted += [name for name, _ in model.named_buffers()]
    assert sorted(named) == sorted(wanted)
    assert ("trunk.wte.weight", "head.weight") in tensors


def test_classes_that_a_model_names_are_kept_whole_and_else_what_repeats():
    net = Net()
    assert kept_whole(net) == list(net.layers) == list(blocks_of(net))
    net._no_split_modules = ["BatchNorm1d", "Gone"]
    assert kept_whole(net) == [net.stats]
    net._no_split_modules = ["Gone"]
    assert kept_whole(net) == list(net.layers)


def test_a_model_without_blocks_is_one_unit_but_a_sequence_is_its_parts():
    assert paths(nn.Linear(2, 2)) == [[""]]
    assert paths(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.LayerNorm(2))) == [["0"], ["2"]]


def test_a_block_that_is_shared_by_all_layers_is_one_group():
    block = Block(4)
    model = nn.Module()
    model.layers = nn.ModuleList([block, block, block])
    assert paths(model) == [["layers.0", "layers.1", "layers.2"]]


def test_blocks_are_the_outermost_repeated_modules():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList([nn.Embedding(3, 2), nn.Linear(2, 2)])
            self.encoder = nn.ModuleDict({"layers": nn.ModuleList(Block() for _ in range(2))})
            self.decoder = nn.Sequential(Block(), Block(), Block())
            self.activations = nn.ModuleList([nn.ReLU(), nn.ReLU()])

    net = Net()
    assert list(blocks_of(net)) == [*net.encoder["layers"], *net.decoder]
