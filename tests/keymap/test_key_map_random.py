"""Random compositions of rules, by seed. A larger run is `round_trip(seed)` for any other seeds."""

from __future__ import annotations

import torch

from shardload.keymap.assembly import assemble, view_of
from tests.keymap.random_maps import RandomMap, in_torch, refs_of, round_trip


def test_every_map_leads_back_to_the_same_headers():
    met = set()
    for seed in range(1_000):
        met |= {rule.op for rule in round_trip(seed).rules}
    assert met == {"rename", "split", "cat", "stack", "unstack", "transpose", "pad_rows", "alias"}


def test_tensors_are_what_torch_makes_of_them():
    for seed in range(200):
        case = RandomMap(seed, most_rules=8)
        generator = torch.Generator().manual_seed(seed)
        state = {name: torch.randn(shape, generator=generator) for name, shape in case.source.items()}
        refs = refs_of(case.source, shards=2)
        mapped = case.key_map.map_headers(refs).tensors
        expected = in_torch(case.words, state)
        assert mapped.keys() == expected.keys()

        def read(ref, state=state, refs=refs):
            return view_of(state[ref.name], refs[ref.name], ref)

        for name, tensor in mapped.items():
            got = assemble(tensor, read)
            assert got.shape == expected[name].shape == tensor.shape
            assert torch.equal(got, expected[name]), (seed, name)
