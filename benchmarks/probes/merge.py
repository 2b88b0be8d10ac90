"""Measures a merge into a checkpoint on disk against PEFT's load, merge and save: `merge SIZE PAIRS`.

SIZE is "llama" (1.5 GB, every linear layer), "wide" (one tensor of 512 MB), or "tiny". The contestants
run in turn, each in a fresh process with the base in the page cache. Each flushes its output or not, as it always does;
the outputs are compared bit by bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.checkpoints import Spec, llama, write
from benchmarks.measure import ROOT, warm
from benchmarks.memory import memory

RANK, ALPHA = 16, 24  # the scale 1.5 is no power of two, so the order of operations changes the bits
SECONDS = 240
WHO = ("ours", "unverified", "peft")

SIZES = {
    "llama": llama(hidden=2048, ffn=5632, layers=12, vocab=32000),
    "wide": Spec("many", 1, {"model_type": "many-linears", "layers": 1, "per_layer": 1, "width": 16384}),
    "tiny": llama(hidden=256, ffn=704, layers=3, vocab=2000, shards=3),
}


def main() -> None:
    size, pairs = sys.argv[1], int(sys.argv[2])
    spec = SIZES[size]
    deadline = time.monotonic() + SECONDS
    with tempfile.TemporaryDirectory(prefix="shardload-merge-") as scratch:
        base, adapter = Path(scratch, "base"), Path(scratch, "adapter")
        write(spec, "safetensors", base)
        targets = write_adapter(adapter, spec)
        runs: dict[str, list[dict[str, float]]] = {who: [] for who in WHO}
        sums: dict[str, dict[str, str]] = {}
        longest = 0.0
        for number in range(pairs):
            started = time.monotonic()
            if number and started + longest > deadline:
                break
            for who in WHO:
                out = Path(scratch, f"out-{who}")
                runs[who].append(measured(who, spec, base, adapter, out))
                if number == 0:
                    sums[who] = digests(out)
                shutil.rmtree(out)
            longest = max(longest, time.monotonic() - started)
    print(json.dumps(figures_of(runs, sums, spec, targets)))


def figures_of(
    runs: dict[str, list[dict[str, float]]], sums: dict[str, dict[str, str]], spec: Spec, targets: int
) -> dict[str, Any]:
    """Return medians, the median of the ratios of each pair, and the number of tensors with equal bits."""
    found: dict[str, Any] = {"base_bytes": spec.nbytes, "merged_tensors": targets, "pairs": len(runs["ours"])}
    for who in WHO:
        for name in ("wall_s", "work_s", "cpu_s", "anon"):
            found[f"{who}_{name}"] = median(run[name] for run in runs[who])
        found |= {f"{who}_wall_s_{number}": run["wall_s"] for number, run in enumerate(runs[who], 1)}
    ratios = [
        theirs["wall_s"] / ours["wall_s"] for ours, theirs in zip(runs["ours"], runs["peft"], strict=True)
    ]
    found["times"] = median(ratios)
    work = [
        theirs["work_s"] / ours["work_s"] for ours, theirs in zip(runs["ours"], runs["peft"], strict=True)
    ]
    found["times_work"] = median(work)
    found["tensors"] = len(sums["peft"])
    found["equal"] = sum(sums["ours"].get(name) == digest for name, digest in sums["peft"].items())
    if found["equal"] != found["tensors"] or sums["ours"] != sums["unverified"]:
        different = [name for name, digest in sums["peft"].items() if sums["ours"].get(name) != digest]
        raise SystemExit(f"{len(different)} tensors differ from PEFT's, such as {different[:3]}")
    return found


def write_adapter(folder: Path, spec: Spec) -> int:
    """Write a PEFT adapter for every linear layer, with deltas of about 1% of the weights; return how many layers."""
    folder.mkdir()
    random = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    linear = [
        name
        for name, shape in spec.shapes.items()
        if len(shape) == 2 and "embed" not in name and "lm_head" not in name
    ]
    for name in linear:
        rows, columns = spec.shapes[name]
        path = f"base_model.model.{name.removesuffix('.weight')}"
        # |scale * B @ A| per element is about 1.5 * sqrt(16) * 0.02 * 0.0017 = 2e-4, beside weights of 0.02.
        tensors[f"{path}.lora_A.weight"] = torch.randn(RANK, columns, generator=random) * 0.02
        tensors[f"{path}.lora_B.weight"] = torch.randn(rows, RANK, generator=random) * 0.0017
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    names = sorted({name.split(".")[-2] for name in linear})
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": names if spec.kind == "llama" else r"layers\.0\.0",
        "bias": "none",
        "task_type": "CAUSAL_LM" if spec.kind == "llama" else None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return len(linear)


def measured(who: str, spec: Spec, base: Path, adapter: Path, out: Path) -> dict[str, float]:
    """Run one contestant in a fresh process; `anon` is how far its anonymous memory rises after the imports."""
    warm(str(base))
    job = {"who": who, "kind": spec.kind, "config": spec.config}
    job |= {"base": str(base), "adapter": str(adapter), "out": str(out)}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.probes.merge_child", json.dumps(job)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    samples: list[tuple[float, int]] = []
    while (size := memory(process.pid)) is not None:
        samples.append((time.monotonic(), size[0]))
        time.sleep(0.005)
    text, complaint = process.communicate()
    ended = time.monotonic()
    if process.returncode:
        raise SystemExit(f"{who} failed: {complaint.strip()[-400:]}")
    said = json.loads(text.splitlines()[-1])
    peak = max([anon for when, anon in samples if when >= said["imported"]] + [said["before"]])
    return {
        "wall_s": ended - started,
        "work_s": said["done"] - said["imported"],
        "cpu_s": said["cpu_s"],
        "anon": peak - said["before"],
    }


def digests(folder: Path) -> dict[str, str]:
    """Return dtype, shape and SHA-256 of every tensor of a folder, read without any library."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                begin, end = entry["data_offsets"]
                file.seek(start + begin)
                total = hashlib.sha256()
                left = end - begin
                while left:
                    piece = file.read(min(left, 1 << 23))
                    total.update(piece)
                    left -= len(piece)
                found[name] = f"{entry['dtype']} {entry['shape']} {total.hexdigest()}"
    return found


if __name__ == "__main__":
    main()
