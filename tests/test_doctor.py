"""The codes of what the doctor finds in files: attributes of the errors, whatever their texts say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import shardload
from shardload import examine
from tests._system.test_file_kind import KINDS
from tests.adapters import tiny as adapters
from tests.tiny import Net, random_state, save_safetensors, write_checkpoint

INDEX = "model.safetensors.index.json"


def codes(*arguments, **keywords):
    return [finding.code for finding in examine(*arguments, **keywords).findings]


@pytest.mark.parametrize("document", [INDEX, "config.json"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_document_that_is_something_else(tmp_path, document, kind):
    write_checkpoint(tmp_path, random_state(Net()), config={})
    data, _, code = KINDS[kind]
    (tmp_path / document).write_bytes(data)
    found = examine(tmp_path)
    assert [finding.code for finding in found.findings] == [code]
    assert found.exit_code == 4
    assert found.to_dict()["findings"][0]["keywords"] == {}


WEIGHTS = {
    "pointer": "E-LFS", "page": "E-HTML", "S3": "E-HTML", "nothing": "E-CORRUPT", "zeros": "E-CORRUPT",
    "gzip": "E-FORMAT", "gguf": "E-CORRUPT", "pickle": "E-FORMAT", "UTF-16": "E-CORRUPT",
}  # fmt: skip


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_are_something_else(tmp_path, kind):
    (tmp_path / "model.safetensors").write_bytes(KINDS[kind][0])
    assert codes(tmp_path) == [WEIGHTS[kind]]


def test_one_key_in_two_shards_without_an_index_is_no_fault_of_an_index(tmp_path):
    for number in (1, 2):
        save_safetensors({"a": torch.ones(2)}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    found = examine(tmp_path)
    assert [finding.code for finding in found.findings] == ["E-DOUBLE"]
    assert (
        "a stands in model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors"
        in found.lines()[3]
    )
    assert found.exit_code == 4


def test_a_numbered_set_with_a_hole_lacks_shards(tmp_path):
    save_safetensors({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    found = examine(tmp_path)
    assert [finding.code for finding in found.findings] == ["E-SHARDS"]
    assert found.exit_code == 1


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"metadata": {}}', "E-INDEX"),
        ('{"weight_map": {"a": 3}}', "E-INDEX"),
        ("[1]", "E-INDEX"),
        ('{"weight_map": {"a": "model.safetensors", "a": "b"}}', "E-CORRUPT"),
        ('{"weight_map"', "E-CORRUPT"),
    ],
)
def test_a_broken_index(tmp_path, text, code):
    write_checkpoint(tmp_path, random_state(Net()), config={})
    (tmp_path / INDEX).write_text(text)
    assert codes(tmp_path) == [code]


def test_an_index_that_is_not_its_shards(tmp_path):
    write_checkpoint(tmp_path, random_state(Net()), shards=2)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["ghost"] = index["weight_map"].pop("head.weight")
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert codes(tmp_path) == ["E-INDEX"]
    lost = index["weight_map"]["ghost"]
    (tmp_path / lost).unlink()
    assert codes(tmp_path) == ["E-SHARDS"]


def test_words_in_a_users_names_make_no_code(tmp_path):
    """The codes were found by looking for these words in messages once."""
    folder = tmp_path / "an HTML page, a Git-LFS pointer, disagree in, state of an optimizer"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(1, 200)))
    assert codes(folder) == ["E-CORRUPT"]


def test_the_state_of_an_optimizer(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state": {}, "param_groups": [{"lr": 0.1}]}, path)
    assert codes(path) == ["E-OPTIM"]


@pytest.mark.parametrize(("kind", "code"), [("pointer", "E-LFS"), ("page", "E-HTML"), ("gzip", "E-FORMAT")])
@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_files_of_an_adapter_that_are_something_else(tmp_path, kind, code, file):
    base = adapters.Tiny()
    write_checkpoint(tmp_path / "base", base.state_dict(), config={})
    adapters.write(tmp_path / "adapter", adapters.lora_tensors(base))
    (tmp_path / "adapter" / file).write_bytes(KINDS[kind][0])
    found = examine(tmp_path / "base", model_class=lambda _: adapters.Tiny(), adapter=tmp_path / "adapter")
    assert [finding.code for finding in found.findings] == [code]
    assert str(tmp_path / "adapter") in found.where


def test_the_page_lists_every_code():
    """All codes of classes, raises and findings; those of faults of adapters (E-LORA-…) are made of their kinds."""
    root = Path(shardload.__file__).parent
    code = r"[EW]-[A-Z][A-Z0-9-]*[A-Z0-9]"
    raised = {found for path in root.rglob("*.py") for found in re.findall(rf'"({code})"', path.read_text())}
    page = (root.parent / "docs" / "doctor.md").read_text()
    assert raised == set(re.findall(rf"(?<![\w-]){code}(?![\w…-])", page))
