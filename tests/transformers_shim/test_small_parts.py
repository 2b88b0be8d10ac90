"""Activations, generation settings, caches, docstring decorators, probes, logging."""

from __future__ import annotations

import importlib
import inspect
import logging as python_logging
import random
import sys
from types import ModuleType

import pytest
import torch

from shardload import transformers_shim as shim
from shardload.transformers_shim.cache_utils import DynamicCache
from shardload.transformers_shim.utils import (
    add_code_sample_docstrings,
    add_start_docstrings,
    logging,
)


def test_a_cache_is_also_the_old_tuple():
    cache = DynamicCache()
    for step in range(2):
        for layer in range(3):
            key, value = cache.update(torch.full((1, 2, 1, 4), step), torch.zeros(1, 2, 1, 4), layer)
    assert key.shape == value.shape == (1, 2, 2, 4)
    assert (len(cache), cache.get_seq_length(), cache.seen_tokens) == (3, 2, 2)
    assert torch.equal(cache[0][0], cache.to_legacy_cache()[0][0])
    again = DynamicCache.from_legacy_cache(cache.to_legacy_cache())
    assert torch.equal(again[2][0], cache[2][0])
    cache.reorder_cache(torch.tensor([0, 0]))
    assert cache[1][1].shape[0] == 2


def test_docstring_decorators_change_docstrings_only():
    @add_start_docstrings("Before. ")
    @add_code_sample_docstrings(checkpoint="x", output_type=dict)
    def forward(a, b=1):
        """Own."""
        return a + b

    assert (forward(1), forward.__doc__) == (2, "Before. Own.")
    assert list(inspect.signature(forward).parameters) == ["a", "b"]


def test_loggers_warn_once_and_leave_pythons_class_alone(caplog):
    logger = logging.get_logger("shardload.remote_code.repos.test")
    with caplog.at_level("WARNING"):
        logger.warning_once("only once")
        logger.warning_once("only once")
    assert [record.message for record in caplog.records] == ["only once"]
    assert not hasattr(python_logging.getLogger("another"), "warning_once") or hasattr(
        python_logging.Logger, "warning_once"
    )
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    assert logging.get_verbosity() == python_logging.ERROR
    logging.set_verbosity(before)


def test_seeds_of_all_generators():
    set_seed = importlib.import_module("shardload.transformers_shim.trainer_utils").set_seed
    drawn = []
    for _ in range(2):
        set_seed(7)
        drawn.append((random.random(), torch.rand(3).tolist()))
    assert drawn[0] == drawn[1]
    set_seed(8)
    assert torch.rand(3).tolist() != drawn[0][1]


def test_the_old_place_of_utils_has_all_of_it():
    old = importlib.import_module("shardload.transformers_shim.file_utils")
    for name in (
        "ModelOutput",
        "add_start_docstrings_to_model_forward",
        "is_torch_available",
        "WEIGHTS_NAME",
    ):
        assert getattr(old, name) is getattr(shim, name)


def test_a_file_in_the_hubs_cache_is_found_or_not(tmp_path):
    look = shim.try_to_load_from_cache
    assert look("org/name", "a.json", cache_dir=tmp_path) is None
    commit = "0" * 40
    folder = tmp_path / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "a.json").write_text("{}")
    assert look("org/name", "a.json", cache_dir=tmp_path) == str(folder / "snapshots" / commit / "a.json")


def test_messages_of_sentencepiece(monkeypatch):
    package, messages = ModuleType("sentencepiece"), ModuleType("sentencepiece.sentencepiece_model_pb2")
    package.sentencepiece_model_pb2 = messages
    monkeypatch.setitem(sys.modules, "sentencepiece", package)
    monkeypatch.setitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", messages)
    assert shim.import_protobuf("the tokenizer") is messages
    monkeypatch.setitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", None)
    with pytest.raises(ImportError, match="sentencepiece_model_pb2"):
        shim.import_protobuf()


def test_bytes_have_letters():
    letters = shim.bytes_to_unicode()
    assert sorted(letters) == list(range(256))
    assert len(set(letters.values())) == 256
    assert [letters[byte] for byte in b" \nAz\x00\xad"] == ["Ġ", "Ċ", "A", "z", "Ā", "Ń"]
    assert letters[0xE9] == "é"
    assert not any(letter.isspace() or not letter.isprintable() for letter in letters.values())
