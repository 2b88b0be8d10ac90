"""custom_generate/generate.py takes the place of `generate`, with consent only."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import shardload
from shardload import RemoteCodeError, UntrustedCodeError
from shardload.checkpoint.sources import find_source
from shardload.remote_code.custom_generate import attach_generate
from shardload.remote_code.importer import GENERATE_FILE as FILE
from shardload.remote_code.listing import code_files
from shardload.remote_code.review import review_code
from shardload.where import CodeTrust, Where
from tests.remote_code.repos import tiny
from tests.tiny import save_safetensors

GENERATE = """
from transformers import PreTrainedModel
from .words import mark
def generate(model, x, times=1, **kwargs):
    assert isinstance(model, PreTrainedModel)
    for _ in range(times):
        x = model(x).logits
    return mark, x
"""
STATE = {"linear.weight": torch.eye(4) * 2, "linear.bias": torch.zeros(4)}


@pytest.fixture
def folder(tmp_path):
    tiny(tmp_path / "repo")
    save_safetensors(STATE, tmp_path / "repo" / "model.safetensors")
    (tmp_path / "repo" / "custom_generate").mkdir()
    (tmp_path / "repo" / FILE).write_text(GENERATE)
    (tmp_path / "repo" / "custom_generate" / "words.py").write_text("mark = 'own'")
    return tmp_path / "repo"


def test_the_repos_way_to_generate(folder):
    model = shardload.from_pretrained(folder, trust_remote_code=True)
    mark, found = model.generate(torch.ones(1, 4), times=2)
    assert (mark, found.tolist()) == ("own", [[4.0] * 4])
    twin = copy.deepcopy(model)
    assert twin.generate.args == (twin,)


TABLES = """
import torch
third = torch.ones(2) / 3
layer = torch.nn.Linear(2, 2)
"""


def test_what_its_file_makes_when_it_is_imported_is_as_in_any_import(folder):
    (folder / FILE).write_text(f"{TABLES}\ndef generate(model):\n    return third, layer\n")
    model = shardload.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
    third, layer = model.generate()
    assert torch.equal(third, torch.ones(2) / 3)
    assert (layer.weight.device.type, layer.weight.dtype) == ("cpu", torch.float32)


def test_a_module_that_a_constructor_imports_makes_the_same_for_every_load(folder):
    path = folder / "modeling_tiny.py"
    late = "super().__init__(config)\n        from .tables import third\n        self.third = third"
    path.write_text(path.read_text().replace("super().__init__(config)", late))
    (folder / "tables.py").write_text(TABLES)
    for dtype in (torch.bfloat16, torch.float32):
        model = shardload.from_pretrained(folder, trust_remote_code=True, dtype=dtype)
        assert torch.equal(model.third, torch.ones(2) / 3)


def test_it_is_code_that_needs_consent(folder, tmp_path):
    (folder / FILE).write_text("raise SystemExit('this ran')")
    with pytest.raises(UntrustedCodeError) as caught:
        shardload.from_pretrained(folder)
    assert FILE in caught.value.where

    class Own(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

    model = shardload.from_pretrained(folder, model_class=Own)
    assert not hasattr(model, "generate")
    with pytest.raises(RemoteCodeError, match="this ran"):
        shardload.from_pretrained(folder, trust_remote_code=True)


def test_it_is_shown_for_review(folder):
    config = json.loads((folder / "config.json").read_text())
    source, _ = find_source(Where(folder))
    (review,) = review_code(source, config)
    assert {FILE, "custom_generate/words.py"} <= {file.name for file, _ in review.contents}
    assert {FILE, "custom_generate/words.py"} <= {file.name for file in code_files(source, config)}


def test_it_sees_the_classes_of_the_model(folder):
    (folder / FILE).write_text(
        "from ..modeling_tiny import TinyModel\ndef generate(model): return isinstance(model, TinyModel)"
    )
    assert shardload.from_pretrained(folder, trust_remote_code=True).generate()


def test_a_repo_whose_model_is_the_librarys(folder):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, vocab_size=9)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / FILE).write_text(GENERATE.replace("x = model(x).logits", "x = model(x).logits.argmax(-1)"))
    for base in ("auto", "parts"):
        model = shardload.from_pretrained(folder, trust_remote_code=True, remote_base=base)
        mark, found = model.generate(torch.ones(1, 3, dtype=torch.long))
        assert (mark, found.shape) == ("own", (1, 3))


def test_a_file_without_the_function(folder):
    (folder / FILE).write_text("generate = 5")
    with pytest.raises(RemoteCodeError, match="is no function"):
        attach_generate(torch.nn.Linear(1, 1), find_source(Where(folder))[0], None, CodeTrust(True), "shim")
