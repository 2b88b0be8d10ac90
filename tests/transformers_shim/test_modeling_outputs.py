"""ModelOutput: a dataclass, a dictionary and a tuple at once."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from shardload.transformers_shim import modeling_outputs
from shardload.transformers_shim.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from shardload.transformers_shim.utils import ModelOutput


@dataclass
class Own(ModelOutput):
    first: Any = None
    second: Any = None


@dataclass
class Needing(ModelOutput):
    first: Any
    second: Any = None


def test_fields_that_are_none_are_left_out():
    logits, past = torch.ones(2), ((1, 2),)
    output = CausalLMOutputWithPast(logits=logits, past_key_values=past)
    assert output[0] is logits
    assert output[1] is output["past_key_values"] is output.past_key_values is past
    assert output[:1] == (logits,)
    assert output[1:] == (past,)
    assert output.to_tuple() == (logits, past)
    assert list(output) == ["logits", "past_key_values"]
    assert len(output) == 2
    assert output.loss is None
    assert "loss" not in output
    assert output.get("loss") is None


def test_assigning_a_field_changes_the_dictionary_too():
    output = Own(first=1)
    output.first = 2
    assert output["first"] == 2
    output["first"] = 3
    assert output.first == 3
    output["second"] = 4
    assert output.to_tuple() == (3, 4)


def test_a_first_field_of_pairs_or_a_mapping_fills_the_output():
    assert Own({"first": 1, "second": 2}).second == 2
    assert Own([("first", 1), ("second", 2)]).to_tuple() == (1, 2)
    assert Own((1, 2)).first == (1, 2)


def test_the_fields_are_fixed():
    output = Own(first=1)
    for action in (
        lambda: output.pop("first"),
        lambda: output.update(first=2),
        lambda: output.setdefault("first", 2),
        lambda: output.__delitem__("first"),
    ):
        with pytest.raises(TypeError, match="fixed"):
            action()


def test_it_is_a_node_of_the_pytree():
    output = BaseModelOutputWithPast(last_hidden_state=torch.ones(2), past_key_values=((torch.ones(1),),))
    doubled = pytree.tree_map(lambda tensor: tensor * 2, output)
    assert type(doubled) is BaseModelOutputWithPast
    assert torch.equal(doubled.past_key_values[0][0], torch.full((1,), 2.0))


def test_it_can_be_pickled():
    again = pickle.loads(pickle.dumps(Own(first=1, second=[2])))
    assert type(again) is Own
    assert again.to_tuple() == (1, [2])


def test_it_can_be_pickled_with_a_field_that_has_no_default():
    again = pickle.loads(pickle.dumps(Needing(1)))
    assert (again.first, again.to_tuple()) == (1, (1,))


def test_fields_are_in_the_order_of_transformers():
    theirs = pytest.importorskip("transformers.modeling_outputs")
    compared = 0
    for name, kind in vars(modeling_outputs).items():
        other = getattr(theirs, name, None)
        if name == "MoECausalLMOutputWithPast":
            continue  # 5.x has its fields in another order than the releases that code was written for
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and other is not None:
            names = [field.name for field in dataclasses.fields(other)]
            own = [field.name for field in dataclasses.fields(kind)]
            assert own == names[: len(own)], name  # later releases added fields at the end
            compared += 1
    assert compared > 35


KINDS = [
    value for name, value in vars(modeling_outputs).items() if "Output" in name and value is not ModelOutput
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_output_is_a_documented_dataclass_that_pytree_and_pickle_know_by_its_name(kind):
    names = [field.name for field in dataclasses.fields(kind)]
    output = kind(**{name: torch.full((1,), float(at)) for at, name in enumerate(names)})
    assert kind() == {}
    assert [value.item() for value in output[:]] == list(range(len(names)))
    assert f"{kind.__module__}.{kind.__qualname__}" == f"{modeling_outputs.__name__}.{kind.__name__}"
    assert not kind.__doc__.startswith(kind.__name__)  # what dataclasses write where there is none
    again = pickle.loads(pickle.dumps(output))
    assert (type(again), list(again)) == (kind, names)
    leaves, spec = pytree.tree_flatten(output)
    assert len(leaves) == len(names)
    assert f"{kind.__module__}.{kind.__qualname__}" in pytree.treespec_dumps(spec)
    assert type(pytree.tree_unflatten(leaves, spec)) is kind


def test_outputs_of_experts_are_indexed_in_order():
    output = modeling_outputs.MoeCausalLMOutputWithPast(logits=2, aux_loss=1, router_logits=3)
    assert output[:] == (1, 2, 3)
    assert output.to_tuple() == (1, 2, 3)
    assert pickle.loads(pickle.dumps(output)) == output
    assert type(output).__module__ == "shardload.transformers_shim.modeling_outputs"
