"""A ChatGLM2-architecture repo with random weights, written on the spot: what `shardload demo` loads."""

from __future__ import annotations

from shardload.demo.repo import default_folder, write_demo_repo
from shardload.demo.sizes import SIZES, DemoSize

__all__ = ["SIZES", "DemoSize", "default_folder", "write_demo_repo"]
