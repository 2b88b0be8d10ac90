"""When a JSON file of a repo is another kind of file, the error has the code and the cure of that kind."""

from __future__ import annotations

import pytest
import torch

import shardload
from shardload.checkpoint.json_file import read_json, read_object
from shardload.checkpoint.sources import find_source
from shardload.compare.verify.manifest import read_manifest
from shardload.errors import CorruptError, ShardloadError, UsageError
from shardload.keywords import place_of
from shardload.remote_code.trust_lock import TrustLock
from tests._system.test_file_kind import KINDS
from tests.adapters import tiny as adapters
from tests.tiny import write_checkpoint


def source_of(folder):
    return find_source(place_of(folder, {}))[0]


class WithGeneration(torch.nn.Module):
    generation_config = None


DOCUMENTS = {
    "model.safetensors.index.json": shardload.open_checkpoint,
    "config.json": shardload.load_config,
    "generation_config.json": lambda folder: shardload.remote_code.attach_generation_config(
        WithGeneration(), source_of(folder)
    ),
    "tokenizer_config.json": shardload.load_tokenizer,
    "adapter_config.json": lambda folder: shardload.load_adapter(adapters.Tiny(), folder),
    "map.json": lambda folder: shardload.KeyMap.read(folder / "map.json"),
    "shardload.lock": lambda folder: TrustLock.read(folder / "shardload.lock"),
    "SHA256SUMS": lambda folder: read_manifest(source_of(folder)),
}


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_document_that_is_something_else_is_named(tmp_path, document, kind):
    data, what, code = KINDS[kind]
    if document == "SHA256SUMS" and kind == "nothing":
        pytest.skip("no file is named by an empty list")
    if document == "adapter_config.json":
        adapters.write(tmp_path, adapters.lora_tensors(adapters.Tiny()))
    else:
        write_checkpoint(tmp_path, adapters.Tiny().state_dict(), shards=2, config={})
    (tmp_path / document).write_bytes(data)
    with pytest.raises(ShardloadError) as caught:
        DOCUMENTS[document](tmp_path)
    error = caught.value
    assert isinstance(error, UsageError if document == "map.json" else CorruptError)
    assert error.code == code
    assert what in error.what
    assert document in str(error)
    assert error.cure


def test_an_object_is_an_object(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    source = source_of(tmp_path)
    assert read_json(source, "a.json") == [1]
    with pytest.raises(CorruptError, match=r"a\.json holds no JSON object"):
        read_object(source, "a.json")
