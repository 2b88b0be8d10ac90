"""Models of remote code are pickled by name; a process that has not trusted the code refuses."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shardload.errors import UntrustedCodeError

from .repos import MODEL, build, tiny

ROOT = Path(__file__).parents[2]


def python(code, *arguments):
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


UNTRUSTING = """
import pickle, sys
from pathlib import Path
from shardload.errors import UntrustedCodeError
try:
    pickle.loads(Path(sys.argv[1]).read_bytes())
except UntrustedCodeError as error:
    print("refused:", error.what, "| cure:", error.cure)
print("torch" in sys.modules or "not even torch")
"""

TRUSTING = """
import pickle, sys, torch
from pathlib import Path
from tests.remote_code.repos import build, local
folder = Path(sys.argv[2])
config = __import__("json").loads((folder / "config.json").read_text())
build(local(folder), config)
model = pickle.loads(Path(sys.argv[1]).read_bytes())
print("weight sum", model(torch.ones(4)).logits.sum().item())
"""


def test_a_pickled_model_needs_trust_in_the_process_that_reads_it(tmp_path):
    mark = tmp_path / "it-ran"
    model = build(*tiny(tmp_path / "repo", model=f"open({str(mark)!r}, 'w').close()\n{MODEL}"))
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    mark.unlink()

    refused = python(UNTRUSTING, tmp_path / "model.pkl")
    assert "refused:" in refused.stdout, refused.stderr
    assert "trust_remote_code=True" in refused.stdout
    assert not mark.exists()

    read = python(TRUSTING, tmp_path / "model.pkl", tmp_path / "repo")
    expected = model(torch.ones(4)).logits.sum().item()
    assert f"weight sum {expected}" in read.stdout, read.stderr
    assert mark.exists()


def test_a_round_trip_in_one_process_keeps_class_config_and_values(tmp_path):
    model = build(*tiny(tmp_path))
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is type(model)
    assert type(again.config) is type(model.config)
    assert torch.equal(again.linear.weight, model.linear.weight)
    assert torch.equal(copy.deepcopy(model).linear.weight, model.linear.weight)


def test_an_output_can_be_pickled(tmp_path):
    output = build(*tiny(tmp_path))(torch.ones(4))
    again = pickle.loads(pickle.dumps(output))
    assert type(again) is type(output)
    assert torch.equal(again.logits, output.logits)


def test_an_unknown_namespace_is_refused_by_any_import():
    name = "shardload.remote_code.repos.h" + "0" * 32 + ".modeling_x"
    with pytest.raises(UntrustedCodeError) as caught:
        __import__(name)
    assert caught.value.where == name.removesuffix(".modeling_x")
