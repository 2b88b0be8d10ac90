"""Loads with a device map: where tensors lie, what is stated, sizes, the disk, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import (
    KeyMap,
    MemoryLimitError,
    OnDevices,
    UnsupportedError,
    UsageError,
    attach_lora,
    build_shell,
    fill,
    from_pretrained,
    open_checkpoint,
    plan_load,
    report_of,
    save,
    save_adapter,
)
from tests.placement.machine_double import IDS, OFFLOADED, Plain, loaded, on_double
from tests.tiny import Net, assert_same_state, meta_names, random_state, torch_filled, write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("net"), random_state(Plain()), shards=2)


@pytest.mark.parametrize(
    "wanted", ["cpu", "auto", {"": "cpu", "layers": "cpu"}, {"": "disk", "layers.1": "cpu"}, {"": "disk"}]
)
def test_on_the_processor_all_is_there_without_hooks_and_disk_is_the_mapped_file(folder, wanted):
    shell = build_shell(Net)
    target = OnDevices(wanted, {"cpu": "1GB"} if wanted == "auto" else None)
    report = fill(shell, open_checkpoint(folder), target=target)
    model = shell.model.eval()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert_same_state(model, torch_filled(Net, random_state(Net())))
    assert not meta_names(model)
    assert report.stated.mapped == sum(each.nbytes for each in random_state(Net()).values())
    assert ("disk" in {row.device for row in report.devices}) == ("disk:" in " ".join(report.notes))
    assert (
        sum(row.nbytes for row in report.devices) == report.stated.mapped + 3 * 4
    )  # computed buffers of three blocks


def test_what_is_cast_and_lies_on_the_disk_lies_in_the_spill(tmp_path):
    make = lambda: nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256))  # noqa: E731
    torch.manual_seed(1)
    oracle = make()
    save(oracle, tmp_path / "net")
    checkpoint = open_checkpoint(tmp_path / "net")
    with pytest.raises(UsageError, match="1.weight would be cast, and lie on the disk") as refused:
        fill(build_shell(make), checkpoint, target=OnDevices({"0": "cpu", "1": "disk"}, dtype=torch.bfloat16))
    assert "spill" in refused.value.cure
    shell = build_shell(make)
    target = OnDevices({"0": "cpu", "1": "disk"}, dtype=torch.bfloat16, spill=tmp_path)
    report = fill(shell, checkpoint, target=target)
    assert (report.stated.spilled, report.stated.anonymous) == (256 * 256 * 2, 256 * 256 * 2 + 2 * 512)
    assert {row.device: row.nbytes for row in report.devices} == dict.fromkeys(("cpu", "disk"), 256 * 257 * 2)
    assert_same_state(shell.model, oracle.to(torch.bfloat16))


def test_sizes_are_those_that_will_lie_there(folder):
    for dtype, share in ((None, 1), (torch.float64, 2), (torch.bfloat16, 0.5)):
        model, machine, report = loaded(folder, "auto", max_memory={0: 10**6}, dtype=dtype)
        assert model.hf_device_map == {"": 0}
        floats = sum(each.nbytes for each in random_state(Plain()).values() if each.is_floating_point())
        assert report.devices[0].nbytes == floats * share + 8 + 3 * 4
        held = [each for each in (*model.parameters(), *model.buffers()) if machine.where(each) == "double:0"]
        assert sum(each.nbytes for each in held) == report.devices[0].nbytes


def test_auto_spreads_what_fits_and_offloads_what_does_not(folder):
    model, machine, report = loaded(folder, "auto", free={0: 3000, 1: 3000, "cpu": 10**9})
    assert set(model.hf_device_map.values()) == {0, 1}
    with machine.strict():
        model(IDS)
    assert machine.fetches == 0
    with pytest.raises(MemoryLimitError, match="device 0 has no room to run"):
        loaded(folder, "auto", free={0: 1000, "cpu": 10**9})
    model, machine, report = loaded(folder, "auto", max_memory={0: 4200, "cpu": 1200})
    assert list(dict.fromkeys(model.hf_device_map.values())) == [0, "cpu", "disk"]
    assert all(row.fits for row in report.devices)
    with machine.strict():
        out = model(IDS)
    torch.testing.assert_close(out, torch_filled(Plain, random_state(Plain()))(IDS))


def test_a_load_that_is_refused_leaves_the_model_without_hooks(folder, monkeypatch):
    from shardload.placement import on_devices

    def installed(*made):
        install(*made)
        raise TypeError("after all hooks are on")

    install = on_devices.install
    monkeypatch.setattr(on_devices, "install", installed)
    model = Plain()
    before = dict(model.named_parameters())
    with pytest.raises(TypeError, match="after all hooks"):
        fill(model, open_checkpoint(folder), target=on_double(OFFLOADED))
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not hasattr(model, "hf_device_map")
    assert all(before[name] is each for name, each in model.named_parameters())


def test_a_device_that_this_machine_lacks_is_refused_before_a_weight_is_read(folder):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(UsageError, match="the map names 0: this machine has no CUDA device") as caught:
        fill(build_shell(Net), open_checkpoint(folder), target=OnDevices({"": 0}))
    assert str(caught.value.where) == "device_map=…"


def given(folder, **keywords):
    return from_pretrained(folder, model_class=lambda _config: Net(), **keywords)


def test_from_pretrained_takes_a_map_and_limits_of_devices(folder):
    model = given(folder, device_map="auto", max_memory={"cpu": 2000})
    assert model.hf_device_map == {
        "embed": "cpu", "layers.0": "cpu", "layers.1": "disk", "layers.2": "disk", "stats": "disk", "head": "disk",
    }  # fmt: skip
    report = report_of(model)
    assert [(row.device, row.limit, row.fits) for row in report.devices] == [
        ("cpu", 2000, True),
        ("disk", None, True),
    ]
    assert "device  cpu: 1.5 kB in 2 blocks, the largest 1.2 kB, of 2.0 kB" in str(report)
    assert report.to_dict()["devices"][1]["blocks"] == 4
    assert given(folder, device_map="cpu", max_memory=10**9).hf_device_map == {"": "cpu"}


@pytest.mark.parametrize(
    ("keywords", "told"),
    [
        ({"device_map": "atuo"}, "pass device_map='auto'"),
        ({"device_map": {"layres": "cpu"}}, "'layres' is no part of the model; the nearest is 'layers'"),
        ({"device_map": "auto", "device": "cuda"}, "device=… and device_map=… both say where the weights go"),
        (
            {"device_map": {"": "disk"}, "copy": True},
            "copy=True reads into memory what the map leaves on the disk",
        ),
        ({"device_map": "auto", "max_memory": {"cpu": "lots"}}, "max_memory='lots' is not a size"),
    ],
)
def test_keywords_that_contradict_one_another_or_the_model(folder, keywords, told):
    with pytest.raises(UsageError) as refused:
        given(folder, **keywords)
    assert told in str(refused.value)


def test_an_adapter_is_attached_and_merged_over_devices(folder, tmp_path):
    one = torch_filled(Plain, random_state(Plain()))
    attach_lora(one, r=2, alpha=4, targets=["up", "down"], init="gaussian", seed=1)
    for name, each in one.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(each, 0.3)
    save_adapter(one, tmp_path)
    for merge in (False, True):
        model = from_pretrained(
            folder, model_class=lambda _config: Plain(), adapter=tmp_path, merge=merge,
            device_map={"": "cpu", "layers.1": "disk"},
        )  # fmt: skip
        torch.testing.assert_close(model(IDS), one(IDS))
        assert model.hf_device_map == {"": "cpu", "layers.1": "disk"}
        assert {row.device for row in report_of(model).devices} == {"cpu", "disk"}


def test_quantised_sizes_are_counted_and_run_where_they_lie(tmp_path):
    pytest.importorskip("bitsandbytes")

    def make():
        return nn.Sequential(nn.Embedding(10, 64), nn.Linear(64, 256), nn.Linear(256, 64), nn.LayerNorm(64))

    torch.manual_seed(6)
    save(make(), tmp_path)
    options = {"model_class": lambda _config: make(), "load_in_8bit": True}
    model = from_pretrained(tmp_path, device_map="auto", max_memory={"cpu": 10**6}, **options)
    (row,) = report_of(model).devices
    int8 = (64 * 256 + 4 * 256) + (256 * 64 + 4 * 64)
    assert row.nbytes == int8 + 4 * (10 * 64 + 256 + 64 + 2 * 64)
    assert type(model[1]).__name__ == "Linear8bitLt"
    with pytest.raises(UnsupportedError, match="run where they lie"):
        from_pretrained(tmp_path, device_map={"": "cpu", "1": "disk"}, **options)


def test_the_check_that_is_run_on_a_gpu_runs(capsys):
    from tests.placement import on_cuda

    assert on_cuda.check(16, on_double, lambda target: target.machine.strict()) == 0
    said = capsys.readouterr().out
    assert said.count("equal") == 6
    if not torch.cuda.is_available():
        assert on_cuda.check() == 2


@pytest.mark.parametrize(("wanted", "limits"), [("auto", {"cpu": 2000}), ({"": "cpu", "head": "disk"}, None)])
def test_what_is_read_into_memory_does_not_lie_on_the_disk(folder, tmp_path, wanted, limits):
    checkpoint = open_checkpoint(folder)
    shell = build_shell(Net)
    before = dict(shell.model.named_parameters())
    with pytest.raises(UsageError, match=r"leaves head.weight on the disk, .* maps no file"):
        fill(shell, checkpoint, target=OnDevices(wanted, limits), copy=True)
    assert all(before[name] is each for name, each in shell.model.named_parameters())
    for built in (None, build_shell(Net)):
        with pytest.raises(UsageError, match="memory"):
            plan_load(checkpoint, device_map=wanted, max_memory=limits, shell=built, copy=True)
    with pytest.raises(UsageError, match="memory"):
        given(folder, device_map=wanted, max_memory=limits, copy=True)
    given(folder, device_map="auto", max_memory={"cpu": "1GB"}, copy=True)  # both cures work
    given(folder, device_map=wanted, max_memory=limits)


def test_the_report_does_not_call_mapped_what_is_joined(tmp_path):
    make = lambda: nn.Sequential(nn.Linear(256, 256, bias=False), nn.Linear(256, 256, bias=False))  # noqa: E731
    half = torch.randn(128, 256)
    torch.save({"a": half, "b": half, "1.weight": torch.randn(256, 256)}, tmp_path / "net.bin")
    report = fill(
        build_shell(make), open_checkpoint(tmp_path / "net.bin"), key_map=KeyMap().cat(["a", "b"], "0.weight"),
        target=OnDevices("disk"),
    )  # fmt: skip
    assert (report.stated.anonymous, report.stated.mapped) == (262144, 262144)
    (note,) = [note for note in report.notes if note.startswith("disk: ")]
    assert note.startswith("disk: 262.1 kB are mapped")
    assert "262.1 kB lie in memory, joined" in note


def test_casts_in_the_spill_lie_on_the_disk_though_their_files_are_read(tmp_path):
    make = lambda: nn.Linear(256, 256, bias=False)  # noqa: E731
    save(make(), tmp_path / "net")
    target = OnDevices("disk", dtype=torch.bfloat16, spill=tmp_path)
    report = fill(build_shell(make), open_checkpoint(tmp_path / "net"), target=target, copy=True)
    assert (report.stated.spilled, report.stated.anonymous) == (256 * 256 * 2, 0)
