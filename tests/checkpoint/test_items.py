"""Checkpoint.items yields pairs in file order, one shard at a time; safetensors and torch are the oracles."""

from __future__ import annotations

import gc
import json
import os
import struct
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from shardload import (
    CorruptError,
    KeyMap,
    NotFoundError,
    UnsupportedError,
    UsageError,
    open_checkpoint,
)
from shardload._system.file_mapping import PrivateMappings
from shardload.checkpoint.items import wanted
from shardload.checkpoint.sources import ranges
from tests.hub_server import HubServer, forget_connections
from tests.keymap.random_maps import RandomMap, in_torch
from tests.tiny import Net, random_state, write_checkpoint

STATE = random_state(Net())
PARTS = {f"experts.{number}.{part}": torch.randn(6, 4) for number in range(4) for part in ("w1", "w3")}


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-of-*"))


def in_file_order(path: Path) -> list[str]:
    """Return the names in a safetensors file in the order of the offsets in its header."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return sorted(header, key=lambda name: header[name]["data_offsets"])


def open_shards(folder: Path) -> list[str]:
    """Return the files of a folder that this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = Path(os.readlink(entry))
        except OSError:
            continue
        if target.parent == folder:
            found.append(target.name)
    return found


@pytest.mark.parametrize("copy", [False, True])
def test_safetensors_pairs_are_those_of_safe_open_in_file_order(tmp_path, copy):
    folder = write_checkpoint(tmp_path, STATE)
    expected = []
    for shard in shards_of(folder):
        with safe_open(str(shard), "pt") as file:
            expected += [(name, file.get_tensor(name)) for name in in_file_order(shard)]
    got = list(open_checkpoint(folder).items(copy=copy))
    assert [name for name, _ in got] == [name for name, _ in expected]
    for (_, ours), (_, theirs) in zip(got, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_names_are_those_that_the_map_gives(tmp_path):
    tensors = open_checkpoint(write_checkpoint(tmp_path, STATE)).tensors
    name = next(iter(tensors))
    assert wanted(tensors, {name: "new"}, ["new"], where="here") == {"new": tensors[name]}


@pytest.mark.parametrize("kind", ["bin", "legacy"])
def test_pickled_pairs_are_those_of_torch_load(tmp_path, kind):
    folder = write_checkpoint(tmp_path, STATE, kind=kind)
    got = list(open_checkpoint(folder).items())
    expected = [torch.load(shard, weights_only=True) for shard in shards_of(folder)]
    assert [len(part) for part in expected] == [shard.tensors for shard in open_checkpoint(folder).shards]
    for part in expected:
        ours = dict(got[: len(part)])
        del got[: len(part)]
        assert ours.keys() == part.keys()
        assert all(torch.equal(ours[name], part[name]) for name in part)


def test_one_shard_is_open_at_a_time_and_none_afterwards(tmp_path):
    folder = write_checkpoint(tmp_path, STATE)
    checkpoint = open_checkpoint(folder)
    kept = []
    for name, tensor in checkpoint.items():
        assert open_shards(folder) == [checkpoint.tensors[name].shard]
        kept.append(tensor)
    assert open_shards(folder) == []
    assert len(kept) == len(STATE)


def test_closing_it_early_closes_the_shard(tmp_path):
    folder = write_checkpoint(tmp_path, STATE)
    items = open_checkpoint(folder).items()
    name, tensor = next(items)
    assert len(open_shards(folder)) == 1
    items.close()
    assert open_shards(folder) == []
    assert torch.equal(tensor, STATE[name])  # the view stays valid
    items = open_checkpoint(folder).items()
    next(items)
    del items
    gc.collect()
    assert open_shards(folder) == []


def test_nothing_is_opened_before_the_first_pair_is_asked_for(tmp_path):
    folder = write_checkpoint(tmp_path, STATE)
    items = open_checkpoint(folder).items()
    assert open_shards(folder) == []
    items.close()


def test_a_view_takes_no_memory_and_never_writes_to_the_file(tmp_path):
    folder = write_checkpoint(tmp_path, STATE)
    before = [path.read_bytes() for path in shards_of(folder)]
    pairs = list(open_checkpoint(folder).items())
    mapped = PrivateMappings()
    for _, tensor in pairs:
        assert mapped.place_of(tensor.data_ptr()) is not None
        tensor.zero_()
    assert [path.read_bytes() for path in shards_of(folder)] == before


def test_what_is_written_to_a_view_outlasts_the_joins_of_its_bytes(tmp_path):
    folder = write_checkpoint(tmp_path, {"a": torch.ones(4096), "b": torch.zeros(4096)}, shards=1)
    items = open_checkpoint(folder).items(key_map=KeyMap().alias("a", "c").cat(["b", "c"], "bc"))
    name, view = next(items)
    assert name == "a"
    view.fill_(7)
    rest = dict(items)
    assert torch.equal(rest["bc"][:4096], torch.zeros(4096))
    assert torch.equal(view, torch.full((4096,), 7.0))


def test_copies_are_not_mapped(tmp_path):
    folder = write_checkpoint(tmp_path, STATE)
    checkpoint = open_checkpoint(folder)
    pairs = list(checkpoint.items(copy=True))
    mapped = PrivateMappings()
    assert all(mapped.place_of(tensor.data_ptr()) is None for _, tensor in pairs)
    assert not checkpoint._mappings


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("copy", [False, True])
def test_a_key_map_gives_what_torch_makes_of_the_tensors(tmp_path, kind, copy):
    for seed in range(25):
        case = RandomMap(seed, most_rules=8)
        state = {name: torch.randn(shape) for name, shape in case.source.items()}
        folder = write_checkpoint(tmp_path / str(seed), state, shards=min(3, len(state)), kind=kind)
        expected = in_torch(case.words, state)
        got = list(open_checkpoint(folder).items(key_map=case.key_map, copy=copy))
        assert sorted(name for name, _ in got) == sorted(expected), seed
        for name, tensor in got:
            assert torch.equal(tensor, expected[name]), (seed, name)


def test_a_joined_tensor_comes_with_its_last_part(tmp_path):
    folder = write_checkpoint(tmp_path, PARTS, shards=2)  # all w1 in the first, all w3 in the second
    key_map = (
        KeyMap()
        .cat(["experts.{}.w1", "experts.{}.w3"], "experts.{}.gate_up")
        .stack("experts.{n}.gate_up", "gate_up")
    )
    folder_of = {}
    for name, tensor in open_checkpoint(folder).items(key_map=key_map):
        folder_of[name] = open_shards(folder)
        halves = [torch.cat([PARTS[f"experts.{n}.w1"], PARTS[f"experts.{n}.w3"]]) for n in range(4)]
        assert torch.equal(tensor, torch.stack(halves))
    assert folder_of == {"gate_up": ["model-00002-of-00002.safetensors"]}


def test_names_are_those_of_the_map(tmp_path):
    folder = write_checkpoint(tmp_path, PARTS, shards=2)
    checkpoint = open_checkpoint(folder)
    split = KeyMap().split("experts.{}.w1", ["left.{}", "right.{}"], [2, 4])
    got = dict(checkpoint.items(["right.*"], key_map=split))
    assert sorted(got) == [f"right.{number}" for number in range(4)]
    for number in range(4):
        assert torch.equal(got[f"right.{number}"], PARTS[f"experts.{number}.w1"][2:])
    with pytest.raises(NotFoundError, match="'experts.0.w1'"):
        checkpoint.items(["experts.0.w1"], key_map=split)


def test_a_part_that_is_held_twice_is_read_once(tmp_path):
    folder = write_checkpoint(tmp_path, {"a": torch.ones(2, 2), "c": torch.zeros(2, 2)}, shards=1)
    key_map = KeyMap().alias("a", "b").cat(["a", "b", "c"], "abc")
    ((_, tensor),) = open_checkpoint(folder).items(key_map=key_map)
    assert torch.equal(tensor, torch.cat([torch.ones(4, 2), torch.zeros(2, 2)]))


def test_what_holds_nothing_but_padding_comes_too(tmp_path):
    folder = write_checkpoint(tmp_path, {"embed": torch.ones(2, 3)}, shards=1)
    key_map = KeyMap().pad_rows("embed", 4, value=5).slice_rows("embed", 4, start=2)
    ((_, tensor),) = open_checkpoint(folder).items(key_map=key_map)
    assert torch.equal(tensor, torch.full((2, 3), 5.0))


def test_a_map_of_another_checkpoint_is_refused(tmp_path):
    bound = (
        KeyMap()
        .rename("experts.{}.{...}", "e.{}.{...}")
        .bind(open_checkpoint(write_checkpoint(tmp_path / "one", PARTS)).tensors)
    )
    other = open_checkpoint(write_checkpoint(tmp_path / "other", STATE))
    with pytest.raises(UsageError, match="written for another checkpoint"):
        other.items(key_map=bound)


def test_no_yielded_tensor_is_kept(tmp_path):
    folder = write_checkpoint(tmp_path, PARTS, shards=2)
    for options in ({"copy": True}, {"key_map": KeyMap().stack("experts.{n}.w1", "w1")}, {}):
        alive = []
        items = open_checkpoint(folder).items(**options)
        while (pair := next(items, None)) is not None:
            alive.append(weakref.ref(pair[1]))
            del pair
            assert alive[-1]() is None  # the iterator has not moved on
    items.close()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["head.weight"], ["head.weight"]),
        (["layers.0.norm.*"], ["layers.0.norm.bias", "layers.0.norm.weight"]),
        (("head.weight", "head.*", "embed.weight"), ["embed.weight", "head.weight"]),
        ((name for name in ("head.weight",)), ["head.weight"]),
        ([], []),
    ],
)
def test_names_and_patterns_choose(tmp_path, names, expected):
    got = list(open_checkpoint(write_checkpoint(tmp_path, STATE)).items(names))
    assert sorted(name for name, _ in got) == expected
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in got)


def test_a_name_that_looks_like_a_pattern_is_itself_first(tmp_path):
    state = {"w[0]": torch.zeros(1), "w0": torch.ones(1)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state, shards=1))
    assert [name for name, _ in checkpoint.items(["w[0]"])] == ["w[0]"]
    assert [name for name, _ in checkpoint.items(["w[01]"])] == ["w0"]


def test_unknown_names_are_an_error_before_anything_is_opened(tmp_path):
    folder = write_checkpoint(tmp_path, STATE)
    checkpoint = open_checkpoint(folder)
    for path in shards_of(folder):
        path.unlink()
    with pytest.raises(NotFoundError) as caught:
        checkpoint.items(["layers.7.down.wieght", "nothing.*", "head.weight"])
    assert "'layers.7.down.wieght', 'nothing.*'" in caught.value.what
    assert "'layers.2.down.weight'" in caught.value.cure
    with pytest.raises(NotFoundError, match="the nearest names: 'head.weight'"):
        checkpoint.read("head.wight")


@pytest.mark.parametrize("names", ["head.weight", [1], [None]])
def test_what_is_no_list_of_names_is_refused(tmp_path, names):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, STATE))
    with pytest.raises(UsageError, match="names is a list"):
        checkpoint.items(names)


def test_a_dtype_that_torch_lacks_is_refused_at_once_unless_it_is_not_wanted(tmp_path):
    header = {
        "packed": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]},
        "plain": {"dtype": "U8", "shape": [2], "data_offsets": [3, 5]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\1\2\0\3\4")
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(UnsupportedError, match="no dtype for F6"):
        checkpoint.items()
    ((_, plain),) = checkpoint.items(["plain"])
    assert plain.tolist() == [3, 4]


def test_a_shard_of_which_nothing_is_wanted_is_not_opened(tmp_path):
    folder = write_checkpoint(tmp_path, STATE)
    checkpoint = open_checkpoint(folder)
    wanted = checkpoint.tensors["head.weight"].shard
    for path in shards_of(folder):
        if path.name != wanted:
            path.unlink()
    ((_, tensor),) = checkpoint.items(["head.weight"])
    assert torch.equal(tensor, STATE["head.weight"])
    with pytest.raises(NotFoundError):
        list(checkpoint.items())


@pytest.mark.parametrize("copy", [False, True])
def test_a_file_that_changed_is_refused(tmp_path, copy):
    folder = write_checkpoint(tmp_path, STATE)
    checkpoint = open_checkpoint(folder)
    first, second, _ = shards_of(folder)
    second.write_bytes(second.read_bytes())  # the same bytes, written once more
    items = checkpoint.items(copy=copy)
    got = [next(items)[0] for _ in in_file_order(first)]
    assert got == in_file_order(first)
    with pytest.raises(CorruptError, match="was changed since its header was read"):
        next(items)
    assert open_shards(folder) == []
    items = open_checkpoint(folder).items(copy=copy)
    next(items)
    first.write_bytes(first.read_bytes())
    with pytest.raises(CorruptError, match="was changed while"):
        list(items)
    assert open_shards(folder) == []


def test_a_shard_of_the_hub_is_fetched_when_its_first_tensor_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "RETRY_DELAYS", (0, 0, 0))
    state = {
        f"layers.{number}.w": torch.randn(200, 700) for number in range(6)
    }  # larger than the first range that a header read asks for
    folder = write_checkpoint(tmp_path / "repo", state, config={})
    with HubServer(tmp_path / "hub") as hub:
        hub.use(monkeypatch, cache=tmp_path / "cache")
        hub.commit("org/model", {path.name: path for path in folder.iterdir()})
        checkpoint = open_checkpoint("org/model")

        def downloaded() -> list[str]:
            sizes = {shard.name: shard.size for shard in checkpoint.shards}
            return [name for name, size in sizes.items() if hub.sent(name) >= size]

        assert downloaded() == []
        met = []
        for name, tensor in checkpoint.items():
            assert torch.equal(tensor, state[name])
            met.append(checkpoint.tensors[name].shard)
            assert downloaded() == sorted(set(met))
        assert downloaded() == [shard.name for shard in checkpoint.shards]
        forget_connections()
