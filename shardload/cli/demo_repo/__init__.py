"""A ChatGLM2-architecture repo with random weights, written on the spot: what `shardload demo` loads."""

from __future__ import annotations

from shardload.cli.demo_repo.repo import default_folder, write_demo_repo
from shardload.cli.demo_repo.sizes import SIZES, DemoSize

__all__ = ["SIZES", "DemoSize", "default_folder", "write_demo_repo"]
