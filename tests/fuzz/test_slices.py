"""A deterministic slice of every fuzz target; `make fuzz` runs a million of each from the same seeds on."""

from __future__ import annotations

import pytest

from tests.fuzz.documents import fuzz_configs, fuzz_indexes
from tests.fuzz.headers import fuzz_safetensors, fuzz_torch
from tests.fuzz.key_maps import fuzz_map_files, fuzz_round_trips

SLICES = {
    "safetensors headers": (lambda: fuzz_safetensors(1, 3000), 50, 2000),
    "zip .bin files": (lambda: fuzz_torch(2, 1000, as_zip=True), 50, 500),
    "legacy .bin files": (lambda: fuzz_torch(2, 1000, as_zip=False), 50, 500),
    "indexes": (lambda: fuzz_indexes(3, 3000), 100, 2000),
    "configs": (lambda: fuzz_configs(4, 3000), 300, 1000),
    "key map round trips": (lambda: fuzz_round_trips(5, 300), 300, 0),
    "key map files": (lambda: fuzz_map_files(6, 1000), 50, 300),
}


@pytest.mark.parametrize("name", SLICES)
def test_every_input_is_accepted_as_the_oracle_reads_it_or_refused_by_one_typed_error(name):
    fuzz, least_accepted, least_refused = SLICES[name]
    tally = fuzz()
    assert tally.others == []
    assert tally.other == 0
    # A target that accepts, or refuses, next to nothing looks at nothing.
    assert tally.accepted >= least_accepted
    assert tally.refused >= least_refused
