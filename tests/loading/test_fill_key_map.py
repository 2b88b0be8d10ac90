"""Loads through key maps: bit for bit what torch makes of the tensors, views where the file has them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import KeyMap, MismatchError, UsageError, check, fill, open_checkpoint
from shardload.model.shell import build_shell
from tests.keymap.random_maps import RandomMap, in_torch
from tests.tiny import write_checkpoint


def module_of(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a tree of modules whose parameters have these names."""
    top = nn.Module()
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        module = top
        for segment in path:
            if segment not in module._modules:
                module.add_module(segment, nn.Module())
            module = module._modules[segment]
        module.register_parameter(leaf, nn.Parameter(torch.empty(shape, dtype=dtype)))
    return top


def filled(folder, shapes, key_map, **options) -> tuple[dict[str, torch.Tensor], object]:
    shell = build_shell(lambda: module_of(shapes))
    report = fill(shell, open_checkpoint(folder), key_map=key_map, progress=False, **options)
    return shell.model.state_dict(), report


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("copy", [False, True])
def test_random_maps_load_what_torch_makes_of_the_tensors(tmp_path, kind, copy):
    for seed in range(25):
        case = RandomMap(seed, most_rules=8)
        generator = torch.Generator().manual_seed(seed)
        state = {name: torch.randn(shape, generator=generator) for name, shape in case.source.items()}
        folder = write_checkpoint(tmp_path / str(seed), state, shards=min(3, len(state)), kind=kind)
        expected = in_torch(case.words, state)
        shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
        got, _ = filled(folder, shapes, case.key_map, copy=copy)
        assert got.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(got[name], tensor), (seed, name)


def test_a_cast_load_is_the_cast_of_the_same(tmp_path):
    from shardload import OnDevice

    for seed in range(25, 40):
        case = RandomMap(seed, most_rules=8)
        state = {name: torch.randn(shape) for name, shape in case.source.items()}
        folder = write_checkpoint(tmp_path / str(seed), state, shards=min(3, len(state)))
        expected = in_torch(case.words, state)
        shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
        got, _ = filled(folder, shapes, case.key_map, target=OnDevice(dtype=torch.bfloat16))
        for name, tensor in expected.items():
            assert torch.equal(got[name], tensor.bfloat16()), (seed, name)


@pytest.fixture
def fused(tmp_path):
    state = {
        "h.0.qkv.weight": torch.randn(12, 4),
        "h.0.fc.weight": torch.randn(4, 6),
        "h.0.gate.weight": torch.randn(3, 4),
        "h.0.up.weight": torch.randn(3, 4),
    }
    return write_checkpoint(tmp_path / "fused", state, shards=2), state


SPLIT = (
    KeyMap()
    .rename("h.{}.{...}", "layers.{}.{...}")
    .split("layers.{}.qkv.{...}", ["layers.{}.q.{...}", "layers.{}.kv.{...}"], [8, 4])
    .transpose("layers.{}.fc.weight")
    .cat(["layers.{}.gate.weight", "layers.{}.up.weight"], "layers.{}.gate_up.weight")
)
SHAPES = {
    "layers.0.q.weight": (8, 4),
    "layers.0.kv.weight": (4, 4),
    "layers.0.fc.weight": (6, 4),
    "layers.0.gate_up.weight": (6, 4),
}


def test_parts_and_transposes_are_views_and_the_report_says_what_is_not(fused):
    folder, state = fused
    got, report = filled(folder, SHAPES, SPLIT)
    q, kv, fc = (got[f"layers.0.{name}.weight"] for name in ("q", "kv", "fc"))
    assert (
        kv.untyped_storage().nbytes() == kv.nbytes
    )  # each a storage of its own extent, side by side in the file
    assert kv.data_ptr() == q.data_ptr() + q.nbytes
    assert fc.stride() == (1, 6)
    assert torch.equal(fc, state["h.0.fc.weight"].T)
    text = str(report)
    assert "key map: 1 tensors are joined in new memory (96 B, at most 96 B" in text
    assert "1 across shards" in text
    assert "key map: 1 tensors are views of their file that are not contiguous" in text


def test_writing_to_one_part_leaves_the_others_and_the_file(fused):
    folder, state = fused
    before = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    got, _ = filled(folder, SHAPES, SPLIT)
    with torch.no_grad():
        got["layers.0.q.weight"].fill_(7)
    assert torch.equal(got["layers.0.kv.weight"], state["h.0.qkv.weight"][8:])
    assert {path.name: path.read_bytes() for path in folder.glob("*.safetensors")} == before


def test_a_second_name_gets_memory_of_its_own_unless_it_is_tied(tmp_path):
    folder = write_checkpoint(tmp_path / "w", {"embed": torch.randn(4, 2)}, shards=1)
    alias = KeyMap().alias("embed", "head")
    got, report = filled(folder, {"embed": (4, 2), "head": (4, 2)}, alias)
    with torch.no_grad():
        got["head"].zero_()
    assert got["embed"].abs().sum() > 0
    assert "1 tensors are copied" in str(report)

    def tied() -> nn.Module:
        model = module_of({"embed": (4, 2)})
        model.head = model.embed
        return model

    shell = build_shell(tied)
    fill(shell, open_checkpoint(folder), key_map=alias, progress=False)
    assert shell.model.head is shell.model.embed


def test_what_does_not_fit_is_judged_from_headers(fused):
    folder, _ = fused
    wrong = SHAPES | {"layers.0.gate_up.weight": (7, 4), "layers.0.more": (1,)}
    shell = build_shell(lambda: module_of(wrong))
    report = check(shell, open_checkpoint(folder), SPLIT)
    faults = {fault.key: fault for fault in report.faults}
    assert faults["layers.0.gate_up.weight"].stored_shape == (6, 4)
    assert faults["layers.0.gate_up.weight"].stored_key == "h.0.gate.weight + h.0.up.weight"
    assert faults["layers.0.more"].kind == "missing"
    with pytest.raises(MismatchError):
        fill(shell, open_checkpoint(folder), key_map=SPLIT, progress=False)
    assert all(p.is_meta for p in shell.model.parameters())


def test_a_map_is_read_from_its_file_and_refused_for_another_checkpoint(fused, tmp_path):
    folder, state = fused
    path = tmp_path / "map.json"
    path.write_text(SPLIT.bind(open_checkpoint(folder).tensors).to_json())
    got, _ = filled(folder, SHAPES, path)
    assert torch.equal(got["layers.0.q.weight"], state["h.0.qkv.weight"][:8])
    other = write_checkpoint(tmp_path / "other", {**state, "x": torch.ones(1)}, shards=1)
    with pytest.raises(UsageError, match="another checkpoint"):
        filled(other, {**SHAPES, "x": (1,)}, str(path))


class Hooked(nn.Module):
    """Its own loader takes tensors as they come, and needs them contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(6, 4))
        self.pair = nn.Parameter(torch.empty(4, 4))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in ("weight", "pair"):
            state_dict[prefix + name] = state_dict[prefix + name].view(-1).view(getattr(self, name).shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_hooks_get_what_a_converted_file_would_give(tmp_path):
    state = {"m.w": torch.randn(4, 6), "m.a": torch.randn(2, 4), "m.b": torch.randn(2, 4)}
    folder = write_checkpoint(tmp_path / "h", state, shards=3)
    key_map = KeyMap().rename("m.w", "own.weight").transpose("own.weight").cat(["m.a", "m.b"], "own.pair")

    def make() -> nn.Module:
        top = nn.Module()
        top.own = Hooked()
        return top

    shell = build_shell(make)
    report = fill(shell, open_checkpoint(folder), key_map=key_map, progress=False)
    assert torch.equal(shell.model.own.weight, state["m.w"].T)
    assert torch.equal(shell.model.own.pair, torch.cat([state["m.a"], state["m.b"]]))
    assert "1 tensors are joined" in str(report)


def test_rows_of_nothing_but_padding_are_loaded_too(tmp_path):
    folder = write_checkpoint(tmp_path / "p", {"a": torch.randn(2, 3)}, shards=1)
    key_map = KeyMap().pad_rows("a", 6, 0.5).split("a", ["b", "c"], [2, 4])
    got, _ = filled(folder, {"b": (2, 3), "c": (4, 3)}, key_map)
    assert torch.equal(got["c"], torch.full((4, 3), 0.5))


def test_two_stored_copies_of_a_tie_are_compared_after_the_map(tmp_path):
    state = {"a.0": torch.ones(2, 3), "a.1": torch.ones(2, 3), "head": torch.ones(4, 3)}
    key_map = KeyMap().cat(["a.0", "a.1"], "embed")

    def tied() -> nn.Module:
        model = module_of({"embed": (4, 3)})
        model.head = model.embed
        return model

    good = write_checkpoint(tmp_path / "good", state, shards=2)
    fill(build_shell(tied), open_checkpoint(good), key_map=key_map, progress=False)
    bad = write_checkpoint(tmp_path / "bad", state | {"head": torch.zeros(4, 3)}, shards=2)
    with pytest.raises(MismatchError, match="differ in the checkpoint"):
        fill(build_shell(tied), open_checkpoint(bad), key_map=key_map, progress=False)


def test_a_part_that_a_tensor_holds_twice_is_read_and_counted_once(tmp_path):
    state = {"a": torch.ones(2, 2), "c": torch.zeros(2, 2)}
    folder = write_checkpoint(tmp_path, state, shards=2)
    twice = KeyMap().alias("a", "b").cat(["a", "b", "c"], "abc")
    got, report = filled(folder, {"abc": (6, 2)}, twice)
    assert torch.equal(got["abc"], torch.cat([state["a"], state["a"], state["c"]]))
    assert report.loaded == 1
    assert report.nbytes == 32
