import json
import os
import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest

from shardload.cli import run
from shardload.cli.demo_repo import write_demo_repo

COMMAND = [sys.executable, "-m", "shardload.cli"]
# A shell that starts something in the background has it, and all that it starts, ignore Ctrl-C. These don't.
INTERRUPTIBLE = [
    *(sys.executable, "-c"),
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import shardload.cli as cli; cli.main()",
]


@pytest.fixture(scope="session")
def small_repo(tmp_path_factory):
    return write_demo_repo(tmp_path_factory.mktemp("demo") / "repo")


@pytest.fixture
def run_cli(tmp_path):
    """Run `shardload` in a process of its own, with stdout and stderr apart."""

    def run_it(*arguments, **environment):
        left_out = {"NO_COLOR", "FORCE_COLOR", "HF_HUB_OFFLINE"}
        clean = {key: value for key, value in os.environ.items() if key not in left_out}
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**clean, "SHARDLOAD_CACHE": str(tmp_path / "cache"), **environment},
            timeout=600,
            check=False,
        )

    return run_it


@pytest.fixture
def call_cli(capsys):
    """Run `shardload` in this process, which has imported torch already."""

    def call(*arguments):
        code = run([*map(str, arguments)])
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return call


@pytest.fixture
def write_headers(tmp_path):
    """Write a safetensors file of float16 tensors whose bytes are a hole in the file."""

    def write(shapes, name="model.safetensors"):
        header, offset = {}, 0
        for key, shape in shapes.items():
            size = 2
            for length in shape:
                size *= length
            header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path = tmp_path / name
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + offset)
        return path

    return write
