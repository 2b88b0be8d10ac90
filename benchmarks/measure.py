"""Starting the measured processes, and watching their memory from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.memory import memory

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parent.parent
SAMPLE_SECONDS = 0.005
TIMEOUT_SECONDS = 300

# No contestant may ask the network, and all find the packages in the same way.
_ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
# Packages that pip installed are compiled; so shall be those that lie in a source tree.
_ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)


class MeasureError(Exception):
    """A measured process failed; the message is the end of what it said."""


def load(job: dict[str, Any]) -> dict[str, float]:
    """Run one job in a fresh process and return its figures: seconds and bytes.

    `ready_s` counts from just before the process is started. `anon_peak` is the highest anonymous memory from
    the end of the imports until every page was touched, over that at the end of the imports; `resident_peak` has
    file-backed pages in it besides, which the kernel can drop.
    """
    warm(job["folder"])
    started = time.monotonic()
    process = _start([sys.executable, "-m", "benchmarks.child", json.dumps(job)])
    watch = _Watch(process.pid)
    out = _finish(process, watch)
    said = json.loads(out.splitlines()[-1])
    seen = [size for when, size in watch.samples if said["imported"] <= when <= said["checked"]]
    before, after = said["before"], said["after"]
    figures = {
        "ready_s": said["ready"] - started,
        "import_s": said["imported"] - started,
        "load_s": said["ready"] - said["imported"],
        "cpu_s": said["cpu_s"],
        "anon_peak": max(anon for anon, _ in [before, after, *seen]) - before[0],
        "anon_kept": after[0] - before[0],
        "resident_peak": max(map(sum, [before, after, *seen])) - sum(before),
        "samples": len(seen),
    }
    return figures | ({"touch_s": said["touch_s"]} if "touch_s" in said else {})


def command(arguments: list[str]) -> dict[str, float]:
    """Run `python ARGUMENTS` and return its wall and CPU seconds."""
    started = time.monotonic()
    before = _children_cpu()
    _finish(_start([sys.executable, *arguments]), None)
    return {"wall_s": time.monotonic() - started, "cpu_s": _children_cpu() - before}


def probe(arguments: Sequence[str]) -> dict[str, float]:
    """Run `python -m benchmarks.probes.NAME ARGUMENT…` and return the figures that it prints."""
    name, *rest = arguments
    out = _finish(_start([sys.executable, "-m", f"benchmarks.probes.{name}", *rest]), None)
    return json.loads(out.splitlines()[-1])


def warm(folder: str) -> None:
    """Read all files of a checkpoint, so that they are in the page cache."""
    buffer = bytearray(1 << 23)
    for path in Path(folder).iterdir():
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


class _Watch:
    """Samples another process's resident memory until it ends."""

    def __init__(self, pid: int) -> None:
        self.samples: list[tuple[float, tuple[int, int]]] = []
        self._pid = pid
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (size := memory(self._pid)) is not None:
            self.samples.append((time.monotonic(), size))
            time.sleep(SAMPLE_SECONDS)

    def join(self) -> None:
        self._thread.join()


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments, cwd=ROOT, env=_ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _finish(process: subprocess.Popen[str], watch: _Watch | None) -> str:
    try:
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise MeasureError(f"not done after {TIMEOUT_SECONDS} s") from None
    if watch:
        watch.join()
    if process.returncode:
        raise MeasureError(err.strip()[-500:] or f"exit status {process.returncode}")
    return out


def _children_cpu() -> float:
    times = os.times()
    return times.children_user + times.children_system
