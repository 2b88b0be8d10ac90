"""Refuses documents that contradict themselves or the shards: doubled keys, and an index that does not match."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

import shardload
from shardload import CorruptError, NotFoundError, ShardloadError, UsageError, open_checkpoint
from tests.adapters import tiny as adapters
from tests.tiny import save_safetensors, write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

# --- a key that occurs twice ------------------------------------------------------------------------------------

INDEX, ADAPTER = "model.safetensors.index.json", "adapter/adapter_config.json"


def _adapter(folder: Path):
    return shardload.load_adapter(adapters.Tiny(), folder / "adapter")


def _generation(folder: Path):
    return shardload.remote_code.attach_generation_config(WithGeneration(), open_checkpoint(folder).source)


TWICE = {
    "weight_map": (INDEX, '{"weight_map": {}, "weight_map": {}}', open_checkpoint),
    "a tensor in the weight_map": (INDEX, '{"weight_map": {"a": "x", "a": "y"}}', open_checkpoint),
    "a tensor, once escaped": (INDEX, '{"weight_map": {"a": "x", "\\u0061": "x"}}', open_checkpoint),
    "total_size": (
        INDEX,
        '{"metadata": {"total_size": 1, "total_size": 2}, "weight_map": {"a": "x"}}',
        open_checkpoint,
    ),
    "config's auto_map": ("config.json", '{"auto_map": {}, "auto_map": {}}', shardload.load_config),
    "an entry of auto_map": (
        "config.json",
        '{"auto_map": {"AutoModel": "a.B", "AutoModel": "c.D"}}',
        shardload.resolve_class,
    ),
    "a size deep inside": (
        "config.json",
        '{"text_config": {"a": [{"n": 1, "n": 2}]}}',
        shardload.load_config,
    ),
    "tokenizer_config": ("tokenizer_config.json", '{"auto_map": 1, "auto_map": 2}', shardload.load_tokenizer),
    "generation_config": ("generation_config.json", '{"max_length": 1, "max_length": 2}', None),
    "an adapter's rank": (ADAPTER, '{"peft_type": "LORA", "r": 4, "r": 8}', None),
    "an adapter's rank_pattern": (
        ADAPTER,
        '{"peft_type": "LORA", "r": 4, "rank_pattern": {"q": 1, "q": 2}}',
        None,
    ),
    "an empty key": ("config.json", '{"": 1, "": 2}', shardload.load_config),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_key_that_stands_twice_is_refused_by_name(tmp_path, name):
    document, text, call = TWICE[name]
    write_checkpoint(tmp_path, adapters.Tiny().state_dict(), shards=2, config={})
    adapters.write(tmp_path / "adapter", adapters.lora_tensors(adapters.Tiny()))
    (tmp_path / document).write_text(text)
    if document == ADAPTER:
        call = _adapter
    elif call is None:
        call = _generation
    with pytest.raises(CorruptError, match="stands twice") as caught:
        call(tmp_path)
    assert document.rpartition("/")[2] in caught.value.what
    assert caught.value.exit_code == 4


class WithGeneration(torch.nn.Module):
    generation_config = None


# --- the index and its shards -----------------------------------------------------------------------------------

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


class Repo:
    """Two shards of two tensors each and their index, which a test then breaks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.shards = {ONE: self.tensors("a", "b"), TWO: self.tensors("c", "d")}
        self.map = {"a": ONE, "b": ONE, "c": TWO, "d": TWO}

    @staticmethod
    def tensors(*names: str) -> dict[str, torch.Tensor]:
        return {name: torch.full((2,), float(ord(name[0]))) for name in names}

    def write(self) -> Path:
        for name, tensors in self.shards.items():
            save_safetensors(tensors, self.folder / name)
        document = {"metadata": {}, "weight_map": self.map}
        (self.folder / INDEX).write_text(json.dumps(document))
        return self.folder


DISAGREE = {
    "a shard is missing": (lambda r: r.shards.pop(TWO), NotFoundError, "1 of 2 shards are missing"),
    "all shards are missing": (lambda r: r.shards.clear(), NotFoundError, "2 of 2 shards are missing"),
    "a tensor in no shard": (lambda r: r.map.update(e=TWO), CorruptError, "in the index, in no shard: e"),
    "a tensor in the other shard": (
        lambda r: r.map.update(a=TWO),
        CorruptError,
        "not in the shard that the index names: a",
    ),
    "two tensors swapped": (lambda r: r.map.update(a=TWO, c=ONE), CorruptError, "disagree in 2 places"),
    "a shard that is empty": (
        lambda r: r.shards.update({TWO: {}}),
        CorruptError,
        "in the index, in no shard",
    ),
    "a shard of another model": (
        lambda r: r.shards.update({TWO: r.tensors("p", "q")}),
        CorruptError,
        "disagree in 4 places",
    ),
    "a name in capitals": (
        lambda r: (r.map.pop("a"), r.map.update(A=ONE)),
        CorruptError,
        "in the index, in no shard: A",
    ),
    "a name with a space": (
        lambda r: (r.map.pop("a"), r.map.update({"a ": ONE})),
        CorruptError,
        "disagree in 2 places",
    ),
    "a file of another name": (
        lambda r: r.map.update(c="model-00003-of-00002.safetensors", d="model-00003-of-00002.safetensors"),
        NotFoundError,
        "1 of 2 shards are missing",
    ),
    "a file name in capitals": (lambda r: r.map.update(a=ONE.upper()), NotFoundError, "shards are missing"),
    "the index names itself": (lambda r: r.map.update(a=INDEX), ShardloadError, ""),
    "the index names config.json": (lambda r: r.map.update(a="config.json"), ShardloadError, ""),
    "an empty weight_map": (lambda r: r.map.clear(), CorruptError, "no weight_map"),
    "a list for a file": (lambda r: r.map.update(a=[ONE]), CorruptError, "no text"),
    "null for a file": (lambda r: r.map.update(a=None), CorruptError, "no text"),
}


@pytest.mark.parametrize("name", DISAGREE)
def test_an_index_that_is_not_its_shards_is_refused(tmp_path, name):
    damage, kind, says = DISAGREE[name]
    repo = Repo(tmp_path)
    assert set(open_checkpoint(repo.write()).tensors) == {"a", "b", "c", "d"}
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    (tmp_path / "config.json").write_text("{}")
    damage(repo)
    with pytest.raises(kind) as caught:
        open_checkpoint(repo.write())
    assert says in str(caught.value)
    assert not isinstance(caught.value, UsageError)


UNLISTED = {
    "a tensor": lambda r: r.map.pop("d"),
    "more of a shard": lambda r: r.shards[ONE].update(r.tensors("x", "y")),
    "a whole layer": lambda r: r.shards[TWO].update({f"layers.{n}.w": torch.ones(1) for n in range(30)}),
    "a shard of the same set": lambda r: (r.map.pop("c"), r.map.pop("d")),
}


@pytest.mark.parametrize("name", UNLISTED)
def test_what_an_index_leaves_out_is_loaded_and_said(tmp_path, name):
    repo = Repo(tmp_path)
    UNLISTED[name](repo)
    checkpoint = open_checkpoint(repo.write())
    assert set(checkpoint.tensors) == {key for tensors in repo.shards.values() for key in tensors}
    assert any(line.startswith(f"{INDEX} leaves out") for line in checkpoint.warnings)


def test_a_tensor_that_two_shards_hold_and_the_index_leaves_out_is_refused(tmp_path):
    repo = Repo(tmp_path)
    for tensors in repo.shards.values():
        tensors["x"] = torch.ones(1)
    with pytest.raises(CorruptError, match="x stands in"):
        open_checkpoint(repo.write())


def test_an_index_that_is_wrong_beside_a_whole_set_may_be_deleted(tmp_path):
    repo = Repo(tmp_path)
    repo.map.update(e=TWO)
    with pytest.raises(CorruptError) as caught:
        open_checkpoint(repo.write())
    assert f"delete {INDEX}" in caught.value.cure
    (tmp_path / INDEX).unlink()
    assert set(open_checkpoint(tmp_path).tensors) == {"a", "b", "c", "d"}
    repo.shards[ONE]["c"] = torch.ones(2)
    with pytest.raises(CorruptError) as caught:
        open_checkpoint(repo.write())
    assert "delete" not in caught.value.cure


def test_a_tensor_in_two_shards_is_settled_by_the_index_and_by_nothing_else(tmp_path):
    repo = Repo(tmp_path)
    repo.shards[TWO]["a"] = torch.zeros(2)
    folder = repo.write()
    assert float(open_checkpoint(folder).read("a")[0]) == float(ord("a"))
    repo.map["a"] = TWO
    assert float(open_checkpoint(repo.write()).read("a")[0]) == 0
    (folder / INDEX).unlink()
    with pytest.raises(CorruptError, match=f"a stands in {ONE} and in {TWO}"):
        open_checkpoint(folder)
