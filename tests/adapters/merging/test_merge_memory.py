"""Anonymous memory of merges, each in a fresh process, RssAnon sampled every 5 ms by another thread."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from tests.adapters import tiny
from tests.tiny import run_python, write_checkpoint

MB = 10**6
ROWS, COLUMNS = 9216, 8192  # 151 MB in bf16, 302 MB in fp32

MERGE = """
import json, sys, threading, time, torch

def anon():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

from torch import nn
from shardload import from_pretrained, merge_to_disk
how, base, adapter, out, tiny_base, tiny_adapter = sys.argv[1:7]
options = json.loads(sys.argv[7])

class Net(nn.Module):
    def __init__(self, rows, columns):
        super().__init__()
        self.big = nn.Linear(columns, rows, bias=False)

def run(base, adapter, out, rows, columns):
    if how == "disk":
        merge_to_disk(base, adapter, out, progress=False, **options)
        return None
    make = lambda config: Net(rows, columns)
    return from_pretrained(base, model_class=make, config={}, adapter=adapter, progress=False, **options)

run(tiny_base, tiny_adapter, out + "-tiny", 8, 8)  # imports and thread pools are not measured
peak, stop = [0], threading.Event()

def sample():
    while not stop.is_set():
        peak[0] = max(peak[0], anon())
        time.sleep(0.005)

before = anon()
thread = threading.Thread(target=sample)
thread.start()
model = run(base, adapter, out, *map(int, sys.argv[8:10]))
total = 0.0 if model is None else float(model.big.weight[:: 16].float().sum())
stop.set()
thread.join()
print(json.dumps({"peak": max(peak[0], anon()) - before, "total": total}))
"""


def adapter_of(folder, rows, columns, kind="linear", magnitude=False):
    random = torch.Generator().manual_seed(1)
    a, b = torch.randn(8, columns, generator=random), torch.randn(rows, 8, generator=random) / 100
    if kind == "embedding":
        a, b = torch.randn(8, rows, generator=random), torch.randn(columns, 8, generator=random) / 100
        names = ("lora_embedding_A", "lora_embedding_B")
    else:
        names = ("lora_A.weight", "lora_B.weight")
    tensors = {f"{tiny.PREFIX}big.{name}": tensor for name, tensor in zip(names, (a, b), strict=True)}
    if magnitude:
        length = columns if kind == "embedding" else rows
        tensors[f"{tiny.PREFIX}big.lora_magnitude_vector"] = torch.rand(length, generator=random) + 1
    return tiny.write(folder, tensors, tiny.config(r=8, use_dora=magnitude))


@pytest.fixture(scope="module")
def big():
    folder = Path(tempfile.mkdtemp(prefix="shardload-merge-memory-"))
    if shutil.disk_usage(folder).free < 2_000 * MB:
        pytest.skip("needs 2 GB of free disk")
    for name, rows, columns in (("big", ROWS, COLUMNS), ("tiny", 8, 8)):
        block = (torch.randn(min(rows, 512), columns) / 10).bfloat16()
        weight = block.repeat(-(-rows // len(block)), 1)
        write_checkpoint(folder / name, {"big.weight": weight}, shards=1, config={})
        for kind in ("linear", "embedding"):
            for magnitude in (False, True):
                adapter_of(folder / f"{name}-{kind}-{magnitude}", rows, columns, kind, magnitude)
    yield folder
    shutil.rmtree(folder)


def measured(big, how, kind="linear", magnitude=False, **options):
    tail = f"{kind}-{magnitude}"
    out = big / f"out-{how}"
    arguments = [how, big / "big", big / f"big-{tail}", out, big / "tiny", big / f"tiny-{tail}"]
    done = run_python(MERGE, *map(str, arguments), json.dumps(options), str(ROWS), str(COLUMNS))
    for path in big.glob("out-*"):
        shutil.rmtree(path)
    return json.loads(done.stdout)["peak"]


@pytest.mark.parametrize(
    ("kind", "magnitude", "options"),
    [
        ("linear", False, {}),
        ("linear", False, {"dtype": "float32"}),
        ("linear", True, {}),
        ("embedding", True, {}),
    ],
)
def test_a_merge_on_disk_takes_a_few_blocks(big, kind, magnitude, options):
    """One tensor of 151 MB; a merge that held it, or its fp32 form, would show."""
    peak = measured(big, "disk", kind, magnitude, **options)
    assert peak <= 100 * MB, peak


def test_a_merge_at_load_peaks_at_the_result(big):
    result = ROWS * COLUMNS * 2
    peak = measured(big, "load", merge=True)
    assert 0.9 * result <= peak <= result + 64 * MB, peak


def test_a_casting_merge_at_load_peaks_at_the_result(big):
    result = ROWS * COLUMNS * 4
    peak = measured(big, "load", merge=True, dtype="float32")
    assert 0.9 * result <= peak <= result + 64 * MB, peak
