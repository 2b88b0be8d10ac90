"""The repo that `shardload demo` writes and loads: the ChatGLM2 architecture with random weights."""

from __future__ import annotations

from shardload.cli.demo_repo.repo import default_folder, write_demo_repo
from shardload.cli.demo_repo.sizes import SIZES, DemoSize

__all__ = ["SIZES", "DemoSize", "default_folder", "write_demo_repo"]
