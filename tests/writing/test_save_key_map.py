"""save writes through the inverse of the map that the model was loaded through."""

from __future__ import annotations

import pytest
import torch

from shardload import KeyMap, NoInverseError, UsageError, fill, open_checkpoint, save
from shardload.model.shell import build_shell
from tests.keymap.random_maps import RandomMap
from tests.loading.test_fill_key_map import module_of
from tests.tiny import write_checkpoint


def loaded(folder, key_map):
    checkpoint = open_checkpoint(folder)
    bound = key_map.bind(checkpoint.tensors)
    shapes = {name: tensor.shape for name, tensor in bound.map_headers(checkpoint.tensors).tensors.items()}
    shell = build_shell(lambda: module_of(shapes))
    fill(shell, checkpoint, key_map=bound, progress=False)
    return shell.model, bound


def test_what_was_loaded_through_a_map_is_saved_bit_for_bit(tmp_path):
    for seed in range(60, 90):
        case = RandomMap(seed, most_rules=8)
        state = {name: torch.randn(shape) for name, shape in case.source.items()}
        folder = write_checkpoint(tmp_path / f"a{seed}", state, shards=min(2, len(state)))
        model, bound = loaded(folder, case.key_map)
        save(model, tmp_path / f"b{seed}", key_map=bound, max_shard_size=200)
        again = open_checkpoint(tmp_path / f"b{seed}")
        assert again.tensors.keys() == state.keys()
        for name, tensor in state.items():
            assert torch.equal(again.read(name), tensor), (seed, name)


def test_what_would_be_lost_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "a", {"embed": torch.randn(4, 3), "x": torch.randn(2)}, shards=1)
    model, bound = loaded(folder, KeyMap().pad_rows("embed", 6).alias("x", "y"))
    with torch.no_grad():
        model.y.fill_(3)
    with pytest.raises(UsageError, match="does not lead back to 'y'"):
        save(model, tmp_path / "b", key_map=bound)
    with torch.no_grad():
        model.y.copy_(model.x)
        model.embed[5] = 1.0
    with pytest.raises(UsageError, match="1 of the model's 3 tensors would be lost: embed"):
        save(model, tmp_path / "b", key_map=KeyMap(bound.rules[:1]))
    assert not (tmp_path / "b").exists() or not list((tmp_path / "b").iterdir())


def test_a_map_without_an_inverse_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "a", {"a": torch.randn(4, 3), "b": torch.randn(4, 3)}, shards=1)
    key_map = KeyMap().cat(["a", "b"], "ab")
    model, _ = loaded(folder, key_map)
    with pytest.raises(NoInverseError, match="without sizes"):
        save(model, tmp_path / "b", key_map=key_map)
