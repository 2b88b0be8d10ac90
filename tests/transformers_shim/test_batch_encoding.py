"""BatchEncoding: lists or tensors by the names of the model's inputs."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from shardload.transformers_shim._batch_encoding import BatchEncoding
from tests.transformers_shim.vocabularies import new


def test_tensors_move_and_unpack(tmp_path):
    batch = new(tmp_path)(["ab", "cd"], return_tensors="pt")
    assert {**batch}.keys() == {"input_ids", "attention_mask"}
    assert batch.to("meta")["input_ids"].device.type == "meta"
    with pytest.raises(AttributeError):
        _ = batch.nothing
    with pytest.raises(ValueError, match="'pt' and 'np'"):
        new(tmp_path)("a", return_tensors="tf")


def test_entries_are_attributes_and_rows_are_the_librarys():
    batch = BatchEncoding({"input_ids": [[1, 2]]}, encoding=["first", "second"], n_sequences=2)
    assert batch.input_ids == batch["input_ids"] == [[1, 2]]
    assert (batch[1], batch.is_fast, batch.n_sequences, batch.encodings) == (
        "second",
        True,
        2,
        ["first", "second"],
    )
    assert batch[:1] == {"input_ids": [[1, 2]]}
    plain = BatchEncoding({"input_ids": [1]})
    assert (plain.is_fast, plain.encodings, BatchEncoding(encoding="one").encodings) == (False, None, ["one"])
    with pytest.raises(KeyError, match="tokenizers library"):
        plain[0]


def test_copies_and_pickles_are_whole():
    batch = BatchEncoding({"input_ids": [1, 2]}, tensor_type="pt", prepend_batch_axis=True)
    for again in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert again.input_ids.tolist() == [[1, 2]]


def test_tensors_are_stacked_and_a_list_becomes_one():
    rows = [torch.ones(2), torch.zeros(2)]
    made = BatchEncoding({"a": rows, "b": [[1], [2]], "c": torch.ones(1)}, tensor_type="pt")
    assert made["a"].tolist() == [[1, 1], [0, 0]]
    assert (made["b"].tolist(), made["c"].tolist()) == ([[1], [2]], [1])
    with pytest.raises(ValueError, match="'b' have different lengths"):
        BatchEncoding({"b": [[1], [2, 3]]}, tensor_type="pt")


def test_numpy_where_it_is_installed():
    numpy = pytest.importorskip("numpy")
    made = BatchEncoding({"a": [[1, 2]]}, tensor_type="np")
    assert isinstance(made["a"], numpy.ndarray)
    assert BatchEncoding({"a": [numpy.ones(2), numpy.zeros(2)]}, tensor_type="pt")["a"].tolist() == [
        [1, 1],
        [0, 0],
    ]
