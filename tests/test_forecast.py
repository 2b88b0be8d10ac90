"""plan_load: what is said before a load, held against what a load does."""

from __future__ import annotations

import json

import pytest
import torch

from shardload import KeyMap, UsageError, from_pretrained, open_checkpoint, plan_load
from shardload.checkpoint.sources import ranges
from shardload.forecast import Amounts
from shardload.loading.memory_plan import A_TENSOR, ROOM_TO_COMPUTE, ROOM_TO_MAP
from tests.adapters import tiny as adapters
from tests.hub_server import HubServer, forget_connections
from tests.test_load_hub import CONFIG, SHARDS, STATE, Model
from tests.tiny import run_python, write_checkpoint

STATE_OF_PARTS = {
    "a": torch.randn(100, 10).bfloat16(),
    "b": torch.randn(50, 10).bfloat16(),
    "ids": torch.arange(30),
    "old": torch.ones(7),
}
MAP = KeyMap().cat(["b", "a"], "ba").drop("old").drop("none.{}.such")


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "w", STATE_OF_PARTS, shards=2)


def test_a_mapped_load_holds_files_only(folder):
    found = plan_load(folder)
    assert found.held == Amounts(file=2000 + 1000 + 240 + 28)
    assert (found.read, found.download, found.tensors, found.shards) == (3268, 0, 4, 2)
    room = ROOM_TO_MAP + 4 * A_TENSOR
    assert (found.peak_anon, found.work_space) == (room, room)
    assert found.dtypes == {"bfloat16": 3000, "int64": 240, "float32": 28}
    assert found.fits


def test_a_cast_takes_memory_for_floats_and_not_for_others(folder):
    found = plan_load(folder, dtype=torch.float32)
    assert found.held == Amounts(anon=4000 + 2000, file=240 + 28)
    room = ROOM_TO_COMPUTE + 4 * A_TENSOR
    assert found.peak_anon == 6000 + room
    assert plan_load(folder, copy=True).held == Amounts(anon=3268)
    on_device = plan_load(folder, dtype="fp16", device="cuda:1")
    assert on_device.held == Amounts(device=2000 + 1000 + 240 + 14)
    assert on_device.peak_anon == room


def test_a_map_is_counted_rule_by_rule(folder):
    found = plan_load(folder, key_map=MAP)
    assert found.held == Amounts(anon=3000, file=240)
    assert [count for _, count in found.rules] == [2, 1, 0]
    assert (found.joins.joined, found.joins.nbytes, found.dropped) == (1, 3000, 1)
    assert "this rule takes no tensor" in found.notes[0]
    # The whole is there until its cast is done.
    room = ROOM_TO_COMPUTE + 2 * A_TENSOR
    assert plan_load(folder, key_map=MAP, dtype="float32").peak_anon == 6000 + 3000 + room
    assert plan_load(folder, key_map=KeyMap().alias("a", "c")).held.anon == 2000


def test_tensors_that_are_not_aligned_are_read(tmp_path):
    path = tmp_path / "odd.safetensors"
    header = json.dumps(
        {
            "x": {"dtype": "I8", "shape": [3], "data_offsets": [0, 3]},
            "y": {"dtype": "F32", "shape": [4], "data_offsets": [3, 19]},
        }
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(19))
    assert plan_load(path).held == Amounts(anon=16, file=3)


def test_an_adapter_computes_in_the_wider_dtype(tmp_path, folder):
    tensors = {
        "base_model.model.a.lora_A.weight": torch.ones(2, 10),
        "base_model.model.a.lora_B.weight": torch.ones(9, 2),
    }
    adapter = adapters.write(tmp_path / "adapter", {k: v.half() for k, v in tensors.items()})
    assert plan_load(folder, adapter=adapter, dtype="float32").adapter == Amounts(anon=(20 + 18) * 4)
    assert plan_load(folder, adapter=adapter, dtype="float16").adapter == Amounts(file=(20 + 18) * 2)
    assert plan_load(folder, adapter=adapter).adapter == Amounts(anon=(20 + 18) * 4)  # bfloat16 and float16


def test_what_is_no_dtype_and_no_device(folder):
    with pytest.raises(UsageError, match="dtype="):
        plan_load(folder, dtype="int8")
    with pytest.raises(UsageError, match="device="):
        plan_load(folder, device="auto")


def test_headers_need_no_torch(folder):
    code = "import sys; from shardload import plan_load; plan_load(sys.argv[1], dtype='bf16', key_map={'old': None}); "
    assert run_python(code + "print('torch' in sys.modules)", str(folder)).stdout == "False\n"


def test_of_the_hub_only_headers_are_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "RETRY_DELAYS", (0, 0, 0))
    folder = write_checkpoint(tmp_path / "repo", STATE, config=CONFIG)
    size = sum((folder / name).stat().st_size for name in SHARDS)
    with HubServer(tmp_path / "hub") as server:
        server.use(monkeypatch, cache=tmp_path / "cache")
        commit = server.commit("org/model", folder)
        found = plan_load("org/model", dtype="bfloat16")
        # The last shard is so small that it came whole with its header.
        assert found.revision == commit
        sizes = {name: (folder / name).stat().st_size for name in SHARDS}
        assert found.download == sum(size for name, size in sizes.items() if server.sent(name) < size)
        assert found.download > 0.9 * size
        assert sum(map(server.sent, SHARDS)) < 0.3 * size
        from_pretrained("org/model", model_class=Model)
        assert plan_load("org/model").download == 0
        forget_connections()


MEASURE = """
import json, sys, threading, time, torch
from torch import nn
from shardload import KeyMap, fill, open_checkpoint, plan_load, OnDevice
from shardload.model.shell import build_shell
from shardload.dtypes import parse_dtype

def anon():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

def module_of(shapes):
    top = nn.Module()
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        module = top
        for segment in path:
            if segment not in module._modules:
                module.add_module(segment, nn.Module())
            module = module._modules[segment]
        module.register_parameter(leaf, nn.Parameter(torch.empty(shape)))
    return top

def load(where, key_map, dtype, copy):
    checkpoint = open_checkpoint(where)
    shapes = {k: t.shape for k, t in key_map.map_headers(checkpoint.tensors).tensors.items()}
    shell = build_shell(lambda: module_of(shapes))
    fill(shell, checkpoint, key_map=key_map, target=OnDevice(dtype=parse_dtype(dtype)), copy=copy, progress=False)
    for parameter in shell.model.parameters():
        parameter.detach().view(-1)[::512].float().sum()  # every page is used
    return shell.model

big, tiny, how, dtype, copy = sys.argv[1:]
key_map = KeyMap.from_json(how)
load(tiny, key_map, dtype, copy == "copy")  # imports are not measured
said = plan_load(big, key_map=key_map, dtype=dtype, copy=copy == "copy")
before, peak, stop = anon(), [0], threading.Event()
def sample():
    while not stop.is_set():
        peak[0] = max(peak[0], anon())
        time.sleep(0.003)
thread = threading.Thread(target=sample)
thread.start()
model = load(big, key_map, dtype, copy == "copy")
after = anon()
stop.set()
thread.join()
print(json.dumps({"said": said.held.anon, "bound": said.peak_anon, "after": after - before, "peak": peak[0] - before}))
"""

EXPERTS = KeyMap().cat(["l.{}.e.{}.w1", "l.{}.e.{}.w3"], "l.{}.e.{}.gu").stack("l.{}.e.{n}.gu", "l.{}.gu")


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """160 MB: layers of experts, dealt to shards so that every layer lies in all of them."""
    folder = tmp_path_factory.mktemp("experts")
    state = {}
    for layer in range(4):
        state[f"l.{layer}.norm"] = torch.ones(64)
        for expert in range(4):
            for weight in ("w1", "w2", "w3"):
                state[f"l.{layer}.e.{expert}.{weight}"] = torch.randn(1024, 1600).bfloat16()
    write_checkpoint(folder / "big", state, shards=3)
    small = {name: tensor[:8, :8] if tensor.dim() == 2 else tensor for name, tensor in state.items()}
    write_checkpoint(folder / "tiny", {name: tensor.contiguous() for name, tensor in small.items()}, shards=3)
    return folder


@pytest.mark.parametrize(
    ("key_map", "dtype", "copy"),
    [(KeyMap(), "auto", ""), (EXPERTS, "auto", ""), (EXPERTS, "float32", ""), (EXPERTS, "auto", "copy")],
)
def test_a_load_takes_what_was_said(experts, key_map, dtype, copy):
    arguments = (str(experts / "big"), str(experts / "tiny"), key_map.to_json(), dtype, copy)
    got = json.loads(run_python(MEASURE, *arguments).stdout)
    assert got["peak"] <= got["bound"], got
    # Parts that were read and freed may stay with the C library.
    assert -(1 << 20) <= got["after"] - got["said"] <= ROOM_TO_COMPUTE // (1 if copy else 4), got


def test_the_bytes_begun_at_once_are_those_that_were_said(experts):
    """The stream's own count of memory for wholes that are not complete, against the forecast's."""
    from shardload import build_shell, fill
    from shardload.keymap.assembly import Joins
    from tests.loading.test_fill_key_map import module_of

    checkpoint = open_checkpoint(experts / "big")
    shapes = {name: tensor.shape for name, tensor in EXPERTS.map_headers(checkpoint.tensors).tensors.items()}
    most = [0]

    class Counting(Joins):
        def take(self, key, ref, part):
            begun = set(self._begun) | {key}
            most[0] = max(most[0], sum(self._wanted[name].nbytes for name in begun))
            return super().take(key, ref, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shardload.loading.stream.Joins", Counting)
        fill(build_shell(lambda: module_of(shapes)), checkpoint, key_map=EXPERTS, progress=False)
    assert most[0] == plan_load(checkpoint, key_map=EXPERTS).joins.peak > 0
