"""The memory that a load states beforehand, the limit `max_memory`, and the file of spilled casts."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import nn

from shardload import (
    MemoryLimitError,
    NoSpaceError,
    NotFoundError,
    OnDevice,
    UsageError,
    build_shell,
    fill,
    from_pretrained,
    open_checkpoint,
    report_of,
)
from shardload.loading.memory_plan import A_TENSOR, ROOM_TO_COMPUTE, ROOM_TO_MAP, Statement, refuse_above
from shardload.placement.taken import Taken
from shardload.tensor_ref import Span, TensorRef
from tests.tiny import tensor_bytes, write_checkpoint

WIDTH = 512


def make(_config=None):
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH, bias=False))


@pytest.fixture
def folder(tmp_path):
    state = {key: torch.randn_like(value).to(torch.bfloat16) for key, value in make().state_dict().items()}
    return write_checkpoint(tmp_path / "checkpoint", state)


def nbytes(model) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def load(folder, **options):
    return from_pretrained(folder, model_class=make, config={}, progress=False, **options)


def test_what_is_stated_is_what_is_held(folder):
    mapped = report_of(model := load(folder)).stated
    assert (mapped.anonymous, mapped.spilled, mapped.mapped) == (0, 0, nbytes(model))
    cast = report_of(model := load(folder, dtype="float32")).stated
    assert (cast.anonymous, cast.spilled, cast.mapped) == (nbytes(model), 0, 0)
    copied = report_of(model := load(folder, copy=True)).stated
    assert (copied.anonymous, copied.spilled, copied.mapped) == (nbytes(model), 0, 0)
    assert f"{copied.peak / 1e6:.1f} MB stated before" in str(report_of(model))


def test_parameters_that_the_class_makes_are_counted(folder):
    def larger(_config):
        return nn.Sequential(*make(), nn.Linear(WIDTH, 7 * WIDTH, bias=False))

    options = {"model_class": larger, "config": {}, "progress": False, "allow_missing": ["3.weight"]}
    stated = report_of(model := from_pretrained(folder, **options)).stated
    assert stated.anonymous == model[3].weight.nbytes == 7 * WIDTH * WIDTH * 2


def test_a_load_above_max_memory_is_refused_before_a_weight_is_read(folder, monkeypatch):
    peak = report_of(load(folder, dtype="float32")).stated.peak
    load(folder, dtype="float32", max_memory=peak)
    shell = build_shell(make)
    monkeypatch.setattr(
        "shardload.checkpoint.shard.Shard.__enter__", lambda self: pytest.fail("a shard was opened")
    )
    with pytest.raises(MemoryLimitError, match=r"takes 4\d\.\d MB .*2\.1 MB stay.* allows 4\d\.\d MB"):
        fill(shell, open_checkpoint(folder), target=OnDevice(dtype=torch.float32), max_memory=peak - 1)
    assert all(parameter.is_meta for parameter in shell.model.parameters())


@pytest.mark.parametrize("value", [-1, 1.5, "2GB", True, {"cpu": "2GB"}])
def test_max_memory_is_a_number_of_bytes(folder, value):
    with pytest.raises(UsageError, match="no number of bytes"):
        load(folder, max_memory=value)


def test_spilled_casts_are_torchs_and_lie_in_a_nameless_file(folder, tmp_path):
    spill = tmp_path / "spill"
    spill.mkdir()
    model = load(folder, dtype="float32", spill=spill)
    plain = load(folder, dtype="float32")
    for key, value in plain.state_dict().items():
        assert tensor_bytes(model.state_dict()[key]) == tensor_bytes(value), key
    assert list(spill.iterdir()) == []
    with open("/proc/self/maps") as maps:
        assert any("shardload-spill-" in line or "(deleted)" in line for line in maps if str(spill) in line)
    stated = report_of(model).stated
    large = sum(p.nbytes for p in model.parameters() if p.ndim == 2)
    assert (stated.anonymous, stated.spilled) == (nbytes(model) - large, large)
    weight = model[0].weight
    assert weight.untyped_storage().nbytes() == weight.nbytes
    with torch.no_grad():
        weight.add_(1)
    assert torch.equal(weight, plain[0].weight + 1)
    assert torch.equal(copy.deepcopy(model)[0].weight, weight)


def test_a_disk_without_room_is_said_before_anything_is_touched(folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    shell = build_shell(make)
    with pytest.raises(NoSpaceError, match=r"spills 2\.1 MB, and the disk has 1\.0 MB free"):
        fill(shell, open_checkpoint(folder), target=OnDevice(dtype=torch.float32, spill=tmp_path))
    assert all(parameter.is_meta for parameter in shell.model.parameters())


def test_a_spill_goes_to_a_folder_and_to_one_target(folder, tmp_path):
    with pytest.raises(NotFoundError, match="no folder to spill to"):
        load(folder, dtype="float32", spill=tmp_path / "absent")
    with pytest.raises(UsageError, match="a target was given"):
        fill(build_shell(make), open_checkpoint(folder), target=OnDevice(), spill=tmp_path)


def stated(*tensors, copy=False):
    """Return the plan of tensors of one shard, each with what its slot takes and whether it is copied."""
    statement, at = Statement(["s"], copy), 0
    for nbytes, taken, copied in tensors:
        ref = TensorRef(f"w{at}", "U8", (nbytes,), "s", Span(at, at + nbytes))
        statement.add(ref, taken, copied=copied)
        at += nbytes
    return statement.plan()


def test_what_stays_a_view_takes_no_memory_and_what_is_cast_stays():
    nothing = Taken(0, 0, 0)
    plan = stated((100, nothing, False), (200, nothing, False))
    assert (plan.mapped, plan.anonymous, plan.device, plan.spilled) == (300, 0, 0, 0)
    assert plan.staging == ROOM_TO_MAP + 2 * A_TENSOR
    cast = stated((100, nothing, False), (200, nothing._replace(anonymous=400), False))
    assert (cast.mapped, cast.anonymous) == (100, 400)
    assert cast.staging >= ROOM_TO_COMPUTE
    assert stated((100, nothing, False), copy=True).anonymous == 100
    assert stated((100, nothing, True)).anonymous == 100
    device = stated((100, nothing._replace(device=100), False))
    assert (device.device, device.anonymous) == (100, 0)
    assert cast.to_dict()["peak"] == cast.peak == cast.anonymous + cast.staging


def test_a_load_above_its_limit_is_refused_with_both_figures():
    plan = stated((10_000_000, Taken(0, 0, 0), True))
    refuse_above(plan, None, str)
    refuse_above(plan, plan.peak, str)
    with pytest.raises(MemoryLimitError) as caught:
        refuse_above(plan, plan.peak - 1, "below {}".format)
    assert caught.value.cure == f"below {plan.peak - 1}"
