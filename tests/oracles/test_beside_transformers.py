"""A slice of `make disturb`: a load of transformers is not disturbed by shells that other threads build."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import run_python

pytest.importorskip("transformers")


def test_transformers_loads_right_beside_threads_that_build_shells():
    code = "from tests.oracles.beside_transformers import sweep; import json; print(json.dumps(sweep(25)))"
    seen = json.loads(
        run_python(code, env={"PYTHONPATH": str(Path(__file__).parents[2])}).stdout.splitlines()[-1]
    )
    assert seen.pop("loads") == 25
    assert seen.pop("shells") > 25
    assert {name: count for name, count in seen.items() if count} == {}
