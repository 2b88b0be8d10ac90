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
from torch import nn
from torch.nn import functional

from shardload import transformers_shim as shim
from shardload.transformers_shim._index import homes
from shardload.transformers_shim.activations import ACT2FN, get_activation
from shardload.transformers_shim.cache_utils import DynamicCache
from shardload.transformers_shim.pytorch_utils import (
    Conv1D,
    apply_chunking_to_forward,
    find_pruneable_heads_and_indices,
    prune_layer,
    prune_linear_layer,
)
from shardload.transformers_shim.utils import (
    PaddingStrategy,
    add_code_sample_docstrings,
    add_start_docstrings,
    is_flash_attn_2_available,
    is_torch_available,
    is_torch_npu_available,
    logging,
)
from shardload.transformers_shim.utils.versions import require_version


def test_every_public_name_is_offered_at_the_top():
    for name, home in homes().items():
        offered = getattr(importlib.import_module(f"shardload.transformers_shim.{home}"), name)
        assert getattr(shim, name) is offered, name


def test_activations_are_new_modules_by_name():
    x = torch.linspace(-2, 2, 9)
    assert ACT2FN["silu"] is not ACT2FN["silu"]
    assert torch.equal(ACT2FN["silu"](x), functional.silu(x))
    assert torch.equal(get_activation("gelu")(x), functional.gelu(x))
    for name in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"):
        torch.testing.assert_close(ACT2FN[name](x), functional.gelu(x, approximate="tanh"))
    with pytest.raises(KeyError, match="no_such"):
        get_activation("no_such")


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


def test_probes_look_and_do_not_import():
    assert is_torch_available() is True
    assert is_torch_npu_available() is False
    assert is_flash_attn_2_available() in (True, False)
    require_version("torch>=1.8")
    with pytest.raises(ImportError, match="no_such_thing"):
        require_version("no_such_thing>=1")


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


def test_enumerations_say_what_they_know():
    assert PaddingStrategy("longest") is PaddingStrategy.LONGEST
    with pytest.raises(ValueError, match="max_length"):
        PaddingStrategy("no_such")


def test_transposed_linear_and_chunking():
    layer = Conv1D(3, 5)
    x = torch.randn(2, 4, 5)
    torch.testing.assert_close(layer(x), x @ layer.weight + layer.bias)
    chunked = apply_chunking_to_forward(lambda t: t * 2, 2, 1, x)
    assert torch.equal(chunked, x * 2)


def test_activations_are_those_of_transformers():
    activations = pytest.importorskip("transformers.activations")
    x = torch.linspace(-4, 4, 33)
    for name in set(activations.ACT2FN) & set(ACT2FN):
        torch.testing.assert_close(ACT2FN[name](x), activations.ACT2FN[name](x), rtol=1e-6, atol=1e-6)


def test_a_clipped_activation_takes_its_bounds():
    assert ACT2FN["gelu_10"](torch.tensor([-20.0, 20.0])).tolist() == [0.0, 10.0]


def test_pruning_keeps_the_other_heads():
    heads, keep = find_pruneable_heads_and_indices({0, 2}, 3, 2, {1})
    # Head 1 went before: of the features that are left, those of head 0 go, and those of head 2, now the second.
    assert heads == {0, 2}
    assert keep.tolist() == [4, 5]
    layer = nn.Linear(6, 4)
    rows = prune_linear_layer(layer, torch.tensor([0, 3]))
    assert torch.equal(rows.weight, layer.weight[[0, 3]])
    assert torch.equal(rows.bias, layer.bias[[0, 3]])
    columns = prune_layer(layer, torch.tensor([1, 2]), dim=1)
    assert torch.equal(columns.weight, layer.weight[:, [1, 2]])
    assert torch.equal(columns.bias, layer.bias)
    turned = prune_layer(Conv1D(4, 6), torch.tensor([0, 3]))
    assert turned.weight.shape == (6, 2)
    assert turned(torch.ones(1, 6)).shape == (1, 2)
    with pytest.raises(ValueError, match="can't be pruned"):
        prune_layer(nn.Identity(), torch.tensor([0]))


def test_chunks_must_fit():
    with pytest.raises(ValueError, match="chunks of 2"):
        apply_chunking_to_forward(torch.relu, 2, 1, torch.ones(1, 5))


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


def test_numbers_of_a_traced_shape_stay_tensors(monkeypatch):
    size = torch.tensor(2.5)
    assert [shim.torch_int(2.7), shim.torch_int(size), shim.torch_float(size)] == [2, 2, 2]
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    assert (shim.torch_int(size).dtype, shim.torch_float(size).dtype) == (torch.int64, torch.float32)
    assert shim.torch_int(2.7) == 2


def test_arguments_that_a_function_does_not_name_are_left_out():
    @shim.filter_out_non_signature_kwargs(extra=["c"])
    def add(a, b=0, **kwargs):
        return a + b + sum(kwargs.values())

    assert add(1, b=2, c=3) == 6
    with pytest.warns(UserWarning, match="takes no d: left out"):
        assert add(1, c=3, d=100) == 4


def test_a_method_is_cached_unless_torch_compiles():
    class Counts:
        calls = 0

        @shim.compile_compatible_method_lru_cache(maxsize=8)
        def double(self, x):
            self.calls += 1
            return 2 * x

    counts = Counts()
    assert [counts.double(2), counts.double(2), counts.double(3)] == [4, 4, 6]
    assert counts.calls == 2
