"""The measured process: `python -m benchmarks.child JOB`. Prints one line of JSON.

It imports nothing heavy before the loader does; clocks are monotonic and shared with the parent.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    job = json.loads(sys.argv[1])
    from benchmarks.loaders import find
    from benchmarks.memory import memory

    load = find(job["loader"]).prepare(job)
    imported, before = time.monotonic(), memory()
    model = load()
    ready, cpu = time.monotonic(), time.process_time()
    after = memory()
    result = {"imported": imported, "ready": ready, "cpu_s": cpu}
    if model is not None:
        from benchmarks.verify import faults

        checking = time.monotonic()
        wrong = faults(model, job["folder"], job["dtype_loaded"])
        result["touch_s"] = time.monotonic() - checking
        if wrong:
            raise SystemExit(f"not loaded as written: {len(wrong)} tensors, such as {', '.join(wrong[:3])}")
    print(json.dumps({**result, "checked": time.monotonic(), "before": before, "after": after}), flush=True)
    os._exit(0)  # taking a model of 46,000 modules apart is not measured, and takes seconds


if __name__ == "__main__":
    main()
