"""ModelOutput, enumerations and decorators of transformers.utils.generic."""

from __future__ import annotations

import contextlib
import copy
import pickle
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from shardload import transformers_shim as shim
from shardload.transformers_shim.utils import PaddingStrategy
from shardload.transformers_shim.utils.generic import ContextManagers, ModelOutput, can_return_tuple


def test_enumerations_say_what_they_know():
    assert PaddingStrategy("longest") is PaddingStrategy.LONGEST
    with pytest.raises(ValueError, match="max_length"):
        PaddingStrategy("no_such")


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


@dataclass
class Output(ModelOutput):
    loss: Any = None
    logits: Any = None
    cache: Any = None


def test_an_output_is_a_dictionary_a_tuple_and_its_fields():
    output = Output(logits=torch.ones(2), cache=())
    assert list(output) == ["logits", "cache"]
    assert output["logits"] is output.logits is output[0]
    assert output[1:] == ((),)
    assert output.loss is None
    output.loss = 3.0  # a field that was None stays out of the dictionary
    assert list(output) == ["logits", "cache"]
    output.logits = 5
    assert output["logits"] == output.to_tuple()[0] == 5
    output["loss"] = 7
    assert output.loss == 7


@pytest.mark.parametrize("first", [{"loss": 1, "logits": 2}, [("loss", 1), ("logits", 2)]])
def test_a_first_field_of_pairs_fills_the_others(first):
    output = Output(first)
    assert (output.loss, output.logits, output.cache) == (1, 2, None)
    assert Output([1, 2]).loss == [1, 2]  # a list that is no pairs is a value
    assert Output("ab").loss == "ab"


@pytest.mark.parametrize(
    "change",
    [
        lambda output: output.pop("loss"),
        lambda output: output.update(loss=2),
        lambda output: output.setdefault("loss", 2),
        lambda output: output.__delitem__("loss"),
    ],
)
def test_the_fields_of_an_output_are_fixed(change):
    with pytest.raises(TypeError, match="its fields are fixed"):
        change(Output(loss=1))


def test_an_output_goes_through_pytree_copies_and_pickles():
    output = Output(logits=torch.ones(2), cache=(torch.zeros(1),))
    leaves, spec = pytree.tree_flatten(output)
    assert len(leaves) == 2
    again = pytree.tree_unflatten([leaf + 1 for leaf in leaves], spec)
    assert type(again) is Output
    assert again.logits.tolist() == [2, 2]
    assert copy.deepcopy(output).cache[0].tolist() == [0]
    assert pickle.loads(pickle.dumps(Output(loss=3))).loss == 3


@pytest.mark.parametrize(
    ("config", "asked", "kind"),
    [
        (None, None, Output),
        (True, None, Output),
        (False, None, tuple),
        (False, True, Output),
        (True, False, tuple),
    ],
)
def test_a_forward_returns_a_tuple_where_it_is_asked_to(config, asked, kind):
    class Model:
        @can_return_tuple
        def forward(self, x):
            return Output(logits=x)

    model = Model()
    if config is not None:
        model.config = SimpleNamespace(return_dict=config)
    made = model.forward(3) if asked is None else model.forward(3, return_dict=asked)
    assert type(made) is kind
    assert made[0] == 3


def test_managers_exit_in_the_opposite_order():
    seen = []

    @contextlib.contextmanager
    def note(name):
        seen.append(name)
        yield
        seen.append(name.upper())

    with ContextManagers([note("a"), note("b")]):
        seen.append("-")
    assert seen == ["a", "b", "-", "B", "A"]
