import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
SAID = {
    "fused_experts": "the same again: True",
    "load_local": "next token",
    "load_from_hub": "46 tensors, 43.5 MB",
    "lora_on_top": "trained one step of 61,440 numbers",
    "own_module": "next token",
    "read_a_mismatch": "{'misshapen': 12, 'missing': 7}",
}


def test_all_are_short():
    assert {path.stem for path in EXAMPLES} == SAID.keys()
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) <= 40


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_without_arguments_or_a_network(path, cache):
    environment = {**os.environ, "SHARDLOAD_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert SAID[path.stem] in done.stdout
