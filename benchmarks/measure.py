"""Starts the measured processes, and watches their memory from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.group import MemoryGroup, NoGroupError
from benchmarks.memory import memory

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parent.parent
SAMPLE_SECONDS = 0.005
TIMEOUT_SECONDS = 300
LIMITED_SECONDS = 90  # under a memory limit a process can run forever without progress

# No contestant may use the network, and all find packages in the same way.
_ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
# Packages that pip installed are compiled to bytecode; those in a source tree have to be as well.
_ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)


class MeasureError(Exception):
    """A measured process failed; the message is the end of its output."""


def load(job: dict[str, Any]) -> dict[str, float]:
    """Run one job in a fresh process and return its figures: seconds and bytes.

    `ready_s` counts from just before the process starts. `anon_peak` is the highest anonymous memory between the end
    of the imports and the touch of the last page, minus the anonymous memory at the end of the imports;
    `resident_peak` also counts file-backed pages, which the kernel can drop. With `cold` in the job, the page cache
    holds no page of the checkpoint. With `limit` (bytes), the process runs in a memory cgroup, and `limited` is how
    often it met the limit.
    """
    evict(job["folder"]) if job.get("cold") else warm(job["folder"])
    if not job.get("limit"):
        return _load(job)
    try:
        with MemoryGroup(job["limit"]) as group:
            return _load({**job, "procs": group.procs}) | {"limited": group.limited()}
    except NoGroupError as error:
        raise MeasureError(f"no memory cgroup can be made here: {error}") from error


def _load(job: dict[str, Any]) -> dict[str, float]:
    started = time.monotonic()
    process = _start([sys.executable, "-m", "benchmarks.child", json.dumps(job)])
    watch = _Watch(process.pid)
    out = _finish(process, watch, LIMITED_SECONDS if job.get("limit") else TIMEOUT_SECONDS)
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
    figures["touched_s"] = figures["load_s"] + said.get("touch_s", 0)
    return figures | {
        name: said[name] for name in ("touch_s", "forward_s", "forward_again_s") if name in said
    }


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


def evict(folder: str) -> None:
    """Make the page cache drop all files of a checkpoint."""
    for path in Path(folder).iterdir():
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


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


def _finish(process: subprocess.Popen[str], watch: _Watch | None, patience: float = TIMEOUT_SECONDS) -> str:
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise MeasureError(f"not done after {patience} s") from None
    if watch:
        watch.join()
    if process.returncode:
        killed = "killed by the system" if process.returncode == -9 else f"exit status {process.returncode}"
        raise MeasureError(err.strip()[-500:] or killed)
    return out


def _children_cpu() -> float:
    times = os.times()
    return times.children_user + times.children_system
