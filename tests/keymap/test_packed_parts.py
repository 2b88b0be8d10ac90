"""The parts of weights that bitsandbytes packed stand beside their weight, whatever rule renamed it."""

from __future__ import annotations

import pytest
import torch

from shardload import KeyMap, open_checkpoint
from tests.tiny import save_safetensors

PARTS = {
    "SCB": torch.ones(2),
    "weight_format": torch.zeros((), dtype=torch.uint8),
    "weight.absmax": torch.ones(1),
    "weight.quant_map": torch.ones(16),
    "weight.nested_absmax": torch.ones(1),
    "weight.nested_quant_map": torch.ones(256),
    "weight.quant_state.bitsandbytes__nf4": torch.zeros(4, dtype=torch.uint8),
}
STORED = {"weight": torch.zeros(2, 4, dtype=torch.int8), "bias": torch.zeros(2), **PARTS}
BESIDE = {f"new.{name}" for name in ("weight", *PARTS)}
OWN = {"old.bias"}
LEFT = {f"old.{name}" for name in STORED if name != "weight"}


@pytest.fixture
def stored(tmp_path):
    save_safetensors(
        {f"old.{name}": tensor for name, tensor in STORED.items()}, tmp_path / "model.safetensors"
    )
    return open_checkpoint(tmp_path).tensors


@pytest.mark.parametrize(
    ("key_map", "names"),
    [
        (KeyMap().rename("old.weight", "new.weight"), BESIDE | OWN),
        (KeyMap().rename("{...}.weight", "a.{...}.weight").rename("a.old.weight", "new.weight"), BESIDE | OWN),
        (KeyMap().rename("old.{...}", "new.{...}"), BESIDE | {"new.bias"}),
        (
            KeyMap().rename("old.SCB", "kept.SCB").rename("old.weight", "new.weight"),
            BESIDE - {"new.SCB"} | {"kept.SCB"} | OWN,
        ),
        (KeyMap().alias("old.weight", "new.weight"), {f"old.{name}" for name in STORED} | {"new.weight"}),
        (KeyMap().rename("old.weight", "new.table"), LEFT | {"new.table"}),
        (
            KeyMap().split("old.weight", ["a.weight", "b.weight"]),
            LEFT | {"a.weight", "b.weight"},
        ),
    ],
)  # fmt: skip
def test_parts_follow_a_weight_that_is_renamed_and_no_other(stored, key_map, names):
    assert key_map.map_headers(stored).tensors.keys() == names


def test_the_inverse_brings_them_back_and_a_bound_map_counts_them(stored):
    key_map = KeyMap().rename("old.weight", "new.weight").bind(stored)
    assert key_map.unchanged == ("old.bias",)
    mapped = key_map.map_headers(stored)
    assert mapped.unchanged == ("old.bias",)
    assert key_map.invert().map_headers(mapped.tensors).tensors == dict(stored)


def test_a_name_that_is_taken_is_not_taken_twice(stored):
    both = {**stored, "new.SCB": stored["old.SCB"]}
    mapped = KeyMap().rename("old.weight", "new.weight").map_headers(both).tensors
    assert {"old.SCB", "new.SCB"} <= mapped.keys()
