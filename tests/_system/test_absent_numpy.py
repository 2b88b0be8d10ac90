"""torch's warning that NumPy is absent is left out, and no other."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from importlib.util import find_spec

import pytest
import torch

from shardload._system.absent_numpy import without_numpy_warning

ABSENT = "Failed to initialize NumPy: No module named 'numpy' (Triggered internally)"
BROKEN = "Failed to initialize NumPy: _ARRAY_API not found (Triggered internally)"
absent = pytest.mark.skipif(find_spec("numpy") is not None, reason="NumPy is there")


def said(code: str) -> str:
    """What a program says, with every warning shown."""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": ""},
    )
    return done.stdout + done.stderr


def around(code: str) -> str:
    """The code, then `filters as found` and `torch is there` where that is so."""
    return (
        f"import sys, warnings; found = list(warnings.filters)\n{code}\n"
        "print('filters as found' if warnings.filters == found else warnings.filters)\n"
        "print('torch is there' if 'torch' in sys.modules else '')"
    )


@absent
def test_torch_itself_warns():
    assert "Failed to initialize NumPy" in said("import torch")


@absent
@pytest.mark.parametrize(
    "code", ["import shardload; shardload.fill", "import shardload.cli; shardload.cli.run(['load', '.'])"]
)
def test_shardload_does_not(code):
    words = said(around(code))
    assert "NumPy" not in words
    assert "filters as found\ntorch is there" in words


def test_only_that_warning_is_left_out():
    code = (
        "from shardload._system.absent_numpy import without_numpy_warning\n"
        "with without_numpy_warning():\n"
        f"    for text in {[ABSENT, BROKEN, 'another']!r}: warnings.warn(text)"
    )
    words = said(around(code))
    assert f"Warning: {ABSENT}" not in words
    assert f"Warning: {BROKEN}" in words
    assert "Warning: another" in words
    assert "filters as found" in words


def test_beside_a_torch_that_is_there_all_are_shown(recwarn):
    assert torch.__name__ in sys.modules
    with without_numpy_warning():
        warnings.warn(ABSENT, UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in recwarn] == [ABSENT]
