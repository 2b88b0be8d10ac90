"""Reading headers never imports torch, whatever the format is."""

from __future__ import annotations

import subprocess
import sys

import torch

from .files import safetensors

SCRIPT = """
import sys, pathlib
from shardload.checkpoint.checkpoint import format_of
from shardload.checkpoint.sources.folder import LocalFile
for path in map(pathlib.Path, sys.argv[1:]):
    file = LocalFile(path.name, path)
    assert len(format_of(file).read_header(file).tensors) == 1, path
heavy = {"torch", "safetensors", "numpy", "huggingface_hub", "transformers", "pickle"}
print(sorted(heavy & set(sys.modules)))
"""


def test_no_torch_is_imported(tmp_path):
    files = [tmp_path / name for name in ("model.safetensors", "zip.bin", "legacy.bin")]
    files[0].write_bytes(safetensors({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"\0"))
    torch.save({"w": torch.ones(1)}, files[1])
    torch.save({"w": torch.ones(1)}, files[2], _use_new_zipfile_serialization=False)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, *map(str, files)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
