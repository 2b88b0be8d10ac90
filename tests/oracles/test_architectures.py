"""Two dozen architectures of transformers, some for each way in which its files differ from its classes.

`python scripts/architectures` compares every model type in the same way.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")

from scripts.architectures import __main__ as command_line  # noqa: E402
from scripts.architectures import compare, report  # noqa: E402
from scripts.architectures.trial import Result, built, try_architecture  # noqa: E402

transformers.logging.set_verbosity(transformers.logging.CRITICAL)
transformers.logging.disable_progress_bar()

# transformers warns of its own matters, such as slow kernels.
pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[2]

LOADED = {
    "llama": "names of the class",
    "gpt_oss": "experts stored as the class has them",
    "t5": "three names for one table",
    "clip": "two towers",
    "mamba": "no attention",
    "whisper": "a computed table that is stored",
    "wav2vec2": "parametrised weights",
    "bloom": "one matrix for queries, keys and values",
    "qwen3_vl_moe": "published files are transposed, those that release 5 saves are not",
    "rwkv": "a constructor that computes",
}
CONVERTED = {
    "detr": "renamed",
    "gpt_neox": "renamed",
    "vit": "renamed",
    "llava": "prefix changed",
    "qwen2_vl": "prefix changed",
    "mixtral": "experts merged and joined",
    "qwen3_moe": "experts merged and joined",
    "jamba": "experts merged and joined, some layers only",
    "dinov2": "split in equal parts",
    "molmo2": "split in unequal parts",
    "mistral_large4": "rows permuted for rotary positions",
    "inkling2": "interleaved",
}


def assert_equal(result: Result) -> None:
    assert (result.outcome, result.written) == ("equal", "equal"), result


@pytest.mark.parametrize("model_type", LOADED)
def test_a_model_is_what_transformers_makes_of_its_files(model_type):
    assert_equal(try_architecture(model_type))


@pytest.mark.parametrize("model_type", CONVERTED)
def test_a_model_whose_files_are_converted_is_what_transformers_makes_of_them(model_type):
    assert_equal(try_architecture(model_type))


@pytest.mark.parametrize("mode", ["bfloat16", "float16"])
@pytest.mark.parametrize("model_type", ["llama", "t5"])
def test_halves_are_what_transformers_makes_of_them(model_type, mode):
    assert_equal(try_architecture(model_type, mode))


def swap(model):
    layers = model.model.layers
    layers[0].self_attn.q_proj.weight, layers[1].self_attn.q_proj.weight = (
        layers[1].self_attn.q_proj.weight,
        layers[0].self_attn.q_proj.weight,
    )


def add_one_bit(model):
    model.model.norm.weight.data.view(torch.int32)[0] += 1


def halve_one(model):
    model.model.norm.to(torch.float16)


def tie(model):
    model.lm_head.weight = model.model.embed_tokens.weight


def disturb_a_computed_buffer(model):
    model.model.rotary_emb.inv_freq[0] += 1


def train_one(model):
    model.model.norm.train()


def change_the_dtype(model):
    model.config.dtype = torch.float16


def change_generation(model):
    model.generation_config.max_length = 7


def leave_on_meta(model):
    model.model.left = torch.empty(2, device="meta")


DISTURBANCES = {
    swap: "state_dict: other values: 2",
    add_one_bit: "state_dict: other values: 1",
    halve_one: "state_dict: other dtype: 1",
    tie: "ties",
    disturb_a_computed_buffer: "computed buffers: other values: 1",
    train_one: "in training mode: model.norm",
    change_the_dtype: "config.dtype",
    change_generation: "generation_config",
    leave_on_meta: "on meta: model.left",
}


@pytest.mark.parametrize("disturb", DISTURBANCES, ids=lambda one: one.__name__)
def test_the_comparison_sees_each_fault(disturb):
    ours, theirs = built("llama"), built("llama")
    assert compare.models(ours, theirs) == ([], [])
    disturb(ours)
    faults, _ = compare.models(ours, theirs)
    assert any(fault.startswith(DISTURBANCES[disturb]) for fault in faults), faults


def test_files_are_compared_key_by_key(tmp_path):
    from safetensors.torch import save_file

    for folder, tensors in {
        "a": {"x": 1.0, "y": 2.0},
        "b": {"x": 1.0, "z": 2.0},
        "c": {"x": 3.0, "y": 2.0},
    }.items():
        (tmp_path / folder).mkdir()
        save_file(
            {name: torch.full((2,), value) for name, value in tensors.items()},
            tmp_path / folder / "w.safetensors",
        )
    assert compare.files(tmp_path / "a", tmp_path / "a") == []
    assert compare.files(tmp_path / "a", tmp_path / "b") == [
        "files: missing: 1, such as z",
        "files: more: 1, such as y",
    ]
    assert compare.files(tmp_path / "a", tmp_path / "c") == ["files: other values: 1, such as x"]


def test_reasons_are_grouped_without_names_and_numbers():
    reason = "MismatchError: the checkpoint does not fit {}: {} unexpected, {} missing; nothing was loaded"
    results = [
        Result("a", class_name="AModel", outcome="refused", reason=reason.format("AModel", 3, "1,024")),
        Result("b", class_name="BModel", outcome="refused", reason=reason.format("BModel", 17, 2)),
        Result("c", class_name="CModel", outcome="equal", outputs="equal", written="equal"),
    ]
    assert "| 2 | a, b |" in report.page(results)
    assert not report.all_right(results)
    assert report.all_right(results[2:])


def test_the_sweep_writes_its_results(tmp_path):
    command = [
        sys.executable,
        "-W",
        "ignore",
        "scripts/architectures",
        "--only",
        "llama,gpt2",
        "--json",
        "r.json",
    ]
    command[3], command[-1] = str(ROOT / command[3]), str(tmp_path / "r.json")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "r.json").read_text())
    assert [(one["model_type"], one["outcome"]) for one in results] == [("llama", "equal"), ("gpt2", "equal")]
    assert "| equal | 2 |" in done.stdout


LIKE_A_SWEEP = """
import os, time
from scripts.architectures import pool

def like_try_architecture(name, mode):
    if name == "dies":
        os._exit(7)
    if name == "hangs":
        time.sleep(600)
    if name == "raises":
        raise ValueError("odd")
    return pool.Result(name, mode, outcome="equal")

pool.try_architecture = like_try_architecture
for result in pool.results(["dies", "hangs", "raises", "works"], "float32", 2, 5):
    print(result.model_type, result.outcome, result.reason)
"""


def test_an_architecture_that_dies_or_hangs_is_a_row():
    done = subprocess.run([sys.executable, "-c", LIKE_A_SWEEP], capture_output=True, text=True, cwd=ROOT)
    assert sorted(done.stdout.splitlines()) == [
        "dies crashed the process ended with 7",
        "hangs crashed not done after 5 s",
        "raises crashed ValueError: odd",
        "works equal ",
    ], done.stderr


def test_a_name_that_is_no_model_type_is_refused():
    with pytest.raises(argparse.ArgumentTypeError, match="lama is no model type of transformers"):
        command_line._names("llama,lama")
