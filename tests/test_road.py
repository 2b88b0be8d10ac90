"""The road of each operation: how many files of the package its second run in a process enters."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import shardload

ROOT = Path(__file__).parents[1]
PACKAGE = Path(shardload.__file__).parent
LIMITS = {
    "from_pretrained, one Linear, the caller's class": 29,
    "from_pretrained, the repo's own code": 55,
    "load_adapter, one layer": 26,
}
"""Files in which a function is called, module bodies not counted (`python scripts/trace_road.py --files`)."""
LONGEST = 400
"""Lines of a file: a shorter road is not made of longer files."""


def tracer():
    spec = importlib.util.spec_from_file_location("trace_road", ROOT / "scripts" / "trace_road.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", LIMITS)
def test_few_files_are_entered(tmp_path, name):
    trace = tracer()
    files = trace.entered(trace.operations(tmp_path)[name])
    assert len(files) <= LIMITS[name], "\n".join(files)
    assert all((PACKAGE / file).is_file() for file in files)


def test_no_file_is_long():
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    # The demo repo's files are those of a published repo.
    long = [path for path, count in lines.items() if count > LONGEST and "demo_repo" not in path.parts]
    assert not long
