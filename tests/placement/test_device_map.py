"""Maps by hand and by size, settled on names and bytes alone."""

from __future__ import annotations

import pytest

from shardload import MemoryLimitError, UsageError
from shardload.placement.device_map import DeviceMap, Part, limits_of, place_of


def part(name: str, *sizes: int, also: dict[int, str] | None = None) -> Part:
    tensors = tuple(
        ((f"{name}.{n}", *([also[n]] if also and n in also else [])), size) for n, size in enumerate(sizes)
    )
    return Part((name,), tensors)


PARTS = [
    part("embed", 40, also={0: "head.weight"}),
    *(part(f"layers.{n}", 30, 10) for n in range(4)),
    part("norm", 4),
]


def free():
    raise AssertionError("this machine's devices are not asked")


def settled(wanted, max_memory=None, parts=PARTS, found=free):
    return DeviceMap(wanted, max_memory).settle(parts, found)


def test_a_device_is_named_as_the_field_names_it():
    import torch

    assert [place_of(each) for each in (0, "1", "cuda:2", torch.device("cuda", 3), "xpu:1", "disk")] == [
        0,
        1,
        2,
        3,
        "xpu:1",
        "disk",
    ]
    assert [place_of(each) for each in (-1, True, "gpu", "meta", None, 1.5, "cpu:x")] == [None] * 7


def test_one_device_is_a_map_of_one_name():
    assert settled(0).places == settled("cuda").places == settled({"": 0}).places == {"": 0}
    assert settled("cpu").places == {"": "cpu"}
    assert settled("cpu").rows[0].nbytes == 204


def test_the_longest_prefix_says_where_a_tensor_lies():
    made = settled({"": 0, "layers": "cpu", "layers.1": 1, "layers.1.1": "disk"})
    assert [made.place(name) for name in ("embed.0", "layers.0.0", "layers.1.0", "layers.1.1", "norm.0")] == [
        0,
        "cpu",
        1,
        "disk",
        0,
    ]
    assert made.main == 0
    assert {row.device: (row.nbytes, row.blocks, row.largest) for row in made.rows} == {
        "0": (44, 2, 40), "1": (30, 1, 30), "cpu": (120, 3, 40), "disk": (10, 1, 10),
    }  # fmt: skip


def test_all_faults_of_a_map_are_told_at_once_with_the_nearest_name():
    with pytest.raises(UsageError) as refused:
        settled({"embed": 0, "layrs.0": 0, "layers.1": "gpu", "head": "cpu"})
    for told in (
        "'layrs.0' is no part of the model; the nearest is 'layers.0'",
        "'layers.1': 'gpu' is no device",
    ):
        assert told in str(refused.value)
    assert "'head'" not in str(refused.value)  # a tied name is a name


def test_what_no_name_covers_is_told():
    with pytest.raises(
        UsageError, match=r"nothing says where layers\.\{2-3\}\.\{0-1\} lies; nothing says where norm"
    ):
        settled({"embed": 0, "head": 0, "layers.0": 0, "layers.1": "cpu"})


def test_a_tied_tensor_lies_once_and_on_an_accelerator():
    made = settled({"": 0, "embed": "cpu", "head": 1})
    assert {row.device: row.nbytes for row in made.rows} == {"0": 164, "1": 40}


@pytest.mark.parametrize(
    ("wanted", "limits", "held"),
    [
        ("auto", {0: 204, 1: 204}, {"0": 120, "1": 84}),
        ("balanced", {0: 204, 1: 204}, {"0": 120, "1": 84}),
        ("sequential", {0: 204, 1: 204}, {"0": 204}),
        ("auto", {0: 160, 1: 40, "cpu": 100}, {"0": 80, "1": 40, "cpu": 84}),
        ("auto", {0: 160, "cpu": 80}, {"0": 80, "cpu": 80, "disk": 44}),
        ("auto", {"cpu": 100}, {"cpu": 80, "disk": 124}),
        ("auto", {0: 0, "cpu": 1000}, {"cpu": 204}),
        ("sequential", {1: "204B", 0: "0GiB"}, {"1": 204}),
    ],
)
def test_sizes_tell_where_blocks_lie(wanted, limits, held):
    made = settled(wanted, limits)
    assert {row.device: row.nbytes for row in made.rows} == held
    assert all(row.fits for row in made.rows)


def test_a_map_by_size_is_a_map_by_hand_of_the_same_names():
    made = settled("auto", {0: 160, 1: 40, "cpu": 100})
    assert list(made.places) == ["embed", "layers.0", "layers.1", "layers.2", "layers.3", "norm"]
    again = settled(dict(made.places), {0: 160, 1: 40, "cpu": 100})
    assert again == made


def test_without_limits_a_tenth_of_a_free_accelerator_is_left():
    made = settled("sequential", found=lambda: {0: 200, "cpu": 1000})
    assert [(row.device, row.nbytes, row.room, row.limit) for row in made.rows] == [
        ("0", 80, 80, 180),
        ("cpu", 124, 0, 1000),
    ]


def test_an_accelerator_that_only_runs_what_is_brought_to_it_is_the_main_one():
    made = settled("auto", {0: 80, "cpu": 1000})
    assert (made.main, made.ahead, made.places) == (0, True, {"": "cpu"})
    assert [(row.device, row.nbytes, row.room) for row in made.rows] == [("0", 0, 80), ("cpu", 204, 0)]
    assert settled("auto", {0: 40, "cpu": 1000}).ahead is False


@pytest.mark.parametrize("limits", [{0: 39, "cpu": 1000}, {0: 39}])
def test_a_device_that_can_not_run_the_largest_block_is_refused(limits):
    with pytest.raises(MemoryLimitError, match="device 0 has no room to run embed, which takes 40 B"):
        settled("auto", limits)


def test_a_map_by_hand_that_overfills_is_refused_with_each_device():
    with pytest.raises(
        MemoryLimitError, match=r"device 0 would hold 40 B and 40 B that is brought to it.*; device cpu would"
    ):
        settled({"": "cpu", "embed": 0}, {0: 79, "cpu": 100})


@pytest.mark.parametrize("limits", [3, "20GiB", {"gpu": 1}, {0: "much"}, {0: -1}])
def test_limits_that_are_none(limits):
    with pytest.raises(UsageError, match="max_memory"):
        limits_of(limits)


@pytest.mark.parametrize("wanted", ["atuo", 1.5, None, [0]])
def test_what_is_no_map(wanted):
    with pytest.raises(UsageError, match="is no map of devices"):
        DeviceMap(wanted)


def test_one_device_is_one_place_whatever_it_is_called():
    import torch

    assert [place_of(each) for each in ("cpu:0", torch.device("cpu", 0), "xpu", "mps", "cuda:127")] == [
        "cpu", "cpu", "xpu:0", "mps:0", 127,
    ]  # fmt: skip
    assert torch.device("cuda", 256) == torch.device("cuda", 0)  # so its number is none
    for none in (128, 256, 10**20, "256", "cuda:300", "\u00b2", "cpu:1", True):
        assert place_of(none) is None
        with pytest.raises(UsageError, match="is no device|is no map"):
            settled({"": none})
        with pytest.raises(UsageError, match="is no map"):
            DeviceMap(none)
    with pytest.raises(UsageError, match="names one device twice, as 0 and as 'cuda:0'"):
        limits_of({0: 10, "cuda:0": 20})


def test_a_model_without_stored_tensors_has_a_map_as_well():
    computed = Part(("",), ((("table",), 8),), frozenset({"table"}))
    for parts in ([], [computed]):
        for wanted in ({}, {"": "cpu"}, "cpu"):
            assert settled(wanted, parts=parts).places == {"": "cpu"}
