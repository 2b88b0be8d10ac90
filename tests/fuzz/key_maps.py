"""Random key maps applied and inverted, and mutated map files: the same headers again, or one typed error."""

from __future__ import annotations

import random

from shardload.errors import ShardloadError
from shardload.keymap import KeyMap
from tests.fuzz.mutation import mutate
from tests.fuzz.tally import Tally
from tests.keymap.random_maps import RandomMap, refs_of, round_trip

LAYOUTS = (1, 2, 3, 4)
"""Shards that a random map's tensors are dealt to: what lies side by side, and what has to be joined, differs."""


def fuzz_round_trips(seed: int, count: int) -> Tally:
    """Apply a random map to headers, invert it, and want the same headers; four layouts a map."""
    tally = Tally()
    case, number = RandomMap(seed), seed
    for trip in range(count):
        number, layout = seed + trip // len(LAYOUTS), LAYOUTS[trip % len(LAYOUTS)]
        tally.tried += 1
        try:
            if layout == LAYOUTS[0]:
                case = RandomMap(number)
                if number % 10 == 0:
                    round_trip(number)
            source = refs_of(case.source, layout)
            bound = case.key_map.bind(source)
            assert bound.invert().map_headers(bound.map_headers(source).tensors).tensors == source
            tally.accepted += 1
        except Exception as error:
            tally.wrong((number, layout), error)
    return tally


def fuzz_map_files(seed: int, count: int) -> Tally:
    """Mutate the JSON of random maps; what is read is written again as the same map."""
    rng, tally = random.Random(seed), Tally()
    texts = [round_trip(seed + number).to_json().encode() for number in range(200)]
    for _ in range(count):
        data = mutate(rng, rng.choice(texts))
        tally.tried += 1
        try:
            key_map = KeyMap.from_json(data.decode("utf-8", errors="replace"))
        except ShardloadError:
            tally.refused += 1
        except Exception as error:
            tally.wrong(data, error)
        else:
            try:
                ok = KeyMap.from_json(key_map.to_json()) == key_map
            except Exception as error:
                tally.wrong(data, error)
                continue
            tally.accepted += ok
            if not ok:
                tally.wrong(data, key_map)
    return tally
