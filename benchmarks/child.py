"""The measured process: `python -m benchmarks.child JOB` runs one load and prints one line of JSON.

The process imports nothing large before the loader does; its clock is monotonic and the same as the parent's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def _forwards(model: Any) -> dict[str, float]:
    """Return the seconds of the first and of the second forward pass after a load."""
    import torch

    tokens = torch.arange(16)[None]
    seconds = []
    with torch.inference_mode():
        for _ in range(2):
            started = time.monotonic()
            model(tokens)
            seconds.append(time.monotonic() - started)
    return {"forward_s": seconds[0], "forward_again_s": seconds[1]}


def main() -> None:
    job = json.loads(sys.argv[1])
    if job.get("procs"):
        with open(job["procs"], "w") as file:  # noqa: PTH123 - joins its memory cgroup before it imports anything
            file.write("0")
    from benchmarks.loaders import find
    from benchmarks.memory import memory

    load = find(job["loader"]).prepare(job)
    imported, before = time.monotonic(), memory()
    model = load()
    ready, cpu = time.monotonic(), time.process_time()
    after = memory()
    result = {"imported": imported, "ready": ready, "cpu_s": cpu}
    if model is not None and job.get("forward"):
        result |= _forwards(model)
    if model is not None:
        from benchmarks.verify import faults

        checking = time.monotonic()
        wrong = faults(model, job["folder"], job["dtype_loaded"])
        result["touch_s"] = time.monotonic() - checking
        if wrong:
            raise SystemExit(f"not loaded as written: {len(wrong)} tensors, such as {', '.join(wrong[:3])}")
    print(json.dumps({**result, "checked": time.monotonic(), "before": before, "after": after}), flush=True)
    os._exit(0)  # freeing a model of 46,000 modules takes seconds and is not measured


if __name__ == "__main__":
    main()
