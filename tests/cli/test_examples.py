import os
import re
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
    "switch_adapters": "swapped in: the logits of the file's, up to ",
}


def test_all_are_short():
    assert {path.stem for path in EXAMPLES} == {*SAID, "finetune_lora", "train_int8"}
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) <= 50


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem in SAID], ids=lambda path: path.stem)
def test_it_runs_without_arguments_or_a_network(path, cache):
    environment = {**os.environ, "SHARDLOAD_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert SAID[path.stem] in done.stdout


def test_training_on_a_quantised_base_lowers_the_loss(cache):
    pytest.importorskip("bitsandbytes")
    environment = {**os.environ, "SHARDLOAD_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(EXAMPLES[0].parent / "train_int8.py"), "--steps", "4"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)
    first, last = re.findall(r"loss ([0-9.]+)", done.stdout)
    assert float(last) < float(first)
    assert float(done.stdout.split()[-1]) < 1e-2


def test_fine_tuning_lowers_the_loss(cache, tmp_path):
    environment = {**os.environ, "SHARDLOAD_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        str(EXAMPLES[0].parent / "finetune_lora.py"),
        "--steps",
        "4",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)
    first, last = re.findall(r"loss ([0-9.]+)", done.stdout)
    assert float(last) < float(first)
    assert float(done.stdout.split()[-1]) < 1e-4
    assert sorted(os.listdir(tmp_path / "out")) == ["adapter_config.json", "adapter_model.safetensors"]
