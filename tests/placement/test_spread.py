"""Plans with a device map: by names, by a shell, for devices that this machine lacks, against the loads themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import OnDevices, UsageError, build_shell, fill, open_checkpoint, plan_load
from shardload.placement.spread import Spread
from tests.placement.machine_double import Double, Plain
from tests.tiny import random_state, write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("net"), random_state(Plain()), shards=2)


def rows(devices):
    return {row.device: (row.nbytes, row.blocks, row.fits) for row in devices}


@pytest.mark.parametrize("dtype", ["stored", "float64"])
@pytest.mark.parametrize(
    "limits", [{0: 9000, 1: 9000}, {0: 4400, "cpu": 3000}, {0: 3900, 1: 1500}, {"cpu": 3000}]
)
def test_a_plan_with_a_shell_is_the_load(folder, tmp_path, limits, dtype):
    plan = plan_load(folder, shell=build_shell(Plain), device_map="auto", max_memory=limits, dtype=dtype)
    if not all(row.fits for row in plan.devices):
        assert dtype == "float64"
        return
    target = OnDevices("auto", limits, None if dtype == "stored" else torch.float64, tmp_path)
    target.machine = Double()
    report = fill(build_shell(Plain), open_checkpoint(folder), target=target)
    assert plan.devices == report.devices
    assert plan.memory == report.stated
    assert plan.fits


def test_a_plan_by_names_counts_what_is_stored(folder):
    plan = plan_load(folder, device_map="sequential", max_memory={0: 4200, "cpu": 1300})
    stored = sum(each.nbytes for each in random_state(Plain()).values())
    assert sum(row.nbytes for row in plan.devices) == stored
    assert list(rows(plan.devices)) == ["0", "cpu", "disk"]
    assert "blocks are told by the names of tensors" in plan.notes[-1]
    assert plan.held.device == plan.devices[0].nbytes
    assert plan.to_dict()["devices"][0]["room"] == plan.devices[0].room > 0
    by_hand = plan_load(folder, device_map={"": 1, "layers.1": "disk", "head": "cpu"})
    assert rows(by_hand.devices)["disk"][:2] == (1152, 1)
    assert by_hand.fits


@pytest.mark.parametrize("shell", [False, True])
def test_what_no_device_can_run_does_not_fit_and_is_shown(folder, shell):
    plan = plan_load(
        folder,
        device_map="auto",
        max_memory={0: 1000, "cpu": 10**6},
        shell=build_shell(Plain) if shell else None,
    )
    assert not plan.fits
    assert [(row.device, row.fits) for row in plan.devices] == [("0", False), ("cpu", True)]
    plan = plan_load(
        folder, device_map={"": 0}, max_memory={0: 1000}, shell=build_shell(Plain) if shell else None
    )
    assert [(row.device, row.fits) for row in plan.devices] == [("0", False)]


def test_quantised_sizes_are_planned(tmp_path):
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(6)
    net = nn.Sequential(nn.Embedding(10, 64), nn.Linear(64, 256), nn.Linear(256, 64), nn.LayerNorm(64))
    from shardload import save

    save(net, tmp_path)
    shell = build_shell(lambda: net)
    plans = [
        plan_load(tmp_path, shell=shell, device_map="auto", max_memory={0: 80_000}, load_in_8bit=eight)
        for eight in (False, True)
    ]
    assert [row.device for row in plans[1].devices] == ["0"]
    assert rows(plans[0].devices)["0"][0] < 80_000
    assert [row.device for row in plans[0].devices] == ["0", "disk"]


def test_limits_want_a_map_and_a_map_is_one():
    with pytest.raises(UsageError, match="there is no map"):
        Spread(None, {0: 1}, "cpu", copy=False)
    with pytest.raises(UsageError, match="does not say which device"):
        Spread("auto", 10**9, "cpu", copy=False)
    with pytest.raises(UsageError, match="is no map of devices"):
        Spread("everywhere", {0: 1}, "cpu", copy=False)
