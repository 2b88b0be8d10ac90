from __future__ import annotations

import math

import pytest
import torch

from shardload import CorruptError, KeyMap, diff
from shardload.compare.diff import distance
from tests.tiny import run_python, write_checkpoint

STATE = {f"layers.{n}.w": torch.arange(6.0).view(2, 3) + n for n in range(3)} | {"head": torch.ones(4)}


def test_equal_checkpoints_of_other_formats_and_cuts(tmp_path):
    a = write_checkpoint(tmp_path / "a", STATE, shards=2)
    b = write_checkpoint(tmp_path / "b", STATE, shards=3, kind="bin")
    found = diff(a, b, values=True, progress=False)
    assert found.ok
    assert (found.same, found.compared, found.values) == (4, 4, {})


def test_keys_shapes_and_dtypes(tmp_path):
    a = write_checkpoint(tmp_path / "a", STATE, shards=1)
    other = {"layers.0.w": STATE["layers.0.w"], "layers.1.w": torch.ones(3, 2), "head": torch.ones(4).half()}
    b = write_checkpoint(tmp_path / "b", other | {"new": torch.ones(1)}, shards=1)
    found = diff(a, b)
    assert not found.ok
    assert list(found.only_a) == ["layers.2.w"]
    assert list(found.only_b) == ["new"]
    assert [str(header) for header in found.shapes["layers.1.w"]] == ["[2, 3] float32", "[3, 2] float32"]
    assert [header.dtype for header in found.dtypes["head"]] == ["float32", "float16"]
    assert found.values is None
    document = found.to_dict()
    assert document["schema"] == "shardload.diff/1"
    assert document["shapes"]["layers.1.w"]["b"] == {"shape": [3, 2], "dtype": "float32"}


def test_values_that_differ_are_measured(tmp_path):
    changed = STATE | {"layers.1.w": STATE["layers.1.w"] + torch.tensor([0.5, 0, 0])}
    a, b = write_checkpoint(tmp_path / "a", STATE), write_checkpoint(tmp_path / "b", changed)
    found = diff(a, b, values=True, progress=False)
    assert found.values is not None
    assert list(found.values) == ["layers.1.w"]
    apart = found.values["layers.1.w"]
    assert (apart.different, apart.max_abs) == (2, 0.5)
    expected = torch.nn.functional.cosine_similarity(
        STATE["layers.1.w"].flatten().double(), changed["layers.1.w"].flatten().double(), dim=0
    )
    assert apart.cosine == pytest.approx(float(expected), abs=1e-12)


def test_the_map_is_applied_to_a(tmp_path):
    a = write_checkpoint(tmp_path / "a", {"m.qk": torch.arange(8.0).view(4, 2)}, shards=1)
    b = write_checkpoint(
        tmp_path / "b", {"q": torch.arange(4.0).view(2, 2), "k": torch.arange(4.0, 8).view(2, 2)}
    )
    assert diff(a, b, key_map=KeyMap().split("m.qk", ["q", "k"]), values=True, progress=False).ok


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_distance_over_many_blocks_is_torchs(dtype, monkeypatch):
    monkeypatch.setattr("shardload.compare.diff._BLOCK", 7)
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(10, 10, generator=generator).mul(3).to(dtype)
    other = one.clone()
    other[3:, 5] = torch.randn(7, generator=generator).mul(3).to(dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    x, y = one.to(wide).flatten(), other.to(wide).flatten()
    got = distance(one, other)
    assert got.different == int((x != y).sum())
    assert got.max_abs == pytest.approx(float((x - y).abs().max()), rel=1e-12)
    cosine = (x * y.conj()).real.sum() / (x.norm() * y.norm()).real
    assert got.cosine == pytest.approx(float(cosine), rel=1e-12)


def test_nan_and_infinity_are_equal_to_themselves_only():
    odd = torch.tensor([math.nan, math.inf, -math.inf, 1.0])
    assert distance(odd, odd.clone()).different == 0
    apart = distance(odd, torch.tensor([0.0, math.inf, math.inf, 1.0]))
    assert apart.different == 2
    assert math.isnan(apart.max_abs) or math.isinf(apart.max_abs)
    assert apart.cosine is None
    assert apart.to_dict()["max_abs"] is None


def test_headers_need_no_torch(tmp_path):
    a = write_checkpoint(tmp_path / "a", STATE)
    code = "import sys; from shardload import diff; print(diff(sys.argv[1], sys.argv[1]).ok, 'torch' in sys.modules)"
    assert run_python(code, str(a)).stdout == "True False\n"


def test_a_file_that_is_cut_is_an_error_not_a_difference(tmp_path):
    a, b = write_checkpoint(tmp_path / "a", STATE), write_checkpoint(tmp_path / "b", STATE, shards=1)
    path = b / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CorruptError):
        diff(a, b)
