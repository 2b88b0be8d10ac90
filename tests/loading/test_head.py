"""A new head on a stored base, and a stored head left out: by the class's `base_model_prefix`, never a layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import MismatchError, UsageError, build_shell, fill, open_checkpoint
from shardload.loading.fault import Fault
from shardload.loading.head import Heads
from tests.tiny import write_checkpoint


class Base(nn.Module):
    base_model_prefix = "net"

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.pooler = nn.ModuleDict({"dense": nn.Linear(4, 4)})


class Classifier(nn.Module):
    base_model_prefix = "net"

    def __init__(self):
        super().__init__()
        self.net = Base()
        self.classifier = nn.Linear(4, 3)


def stored(module, *, without=""):
    return {
        name: torch.randn_like(tensor)
        for name, tensor in module.state_dict().items()
        if not without or without not in name
    }


def test_a_head_and_a_pooler_may_be_new(tmp_path):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, stored(Classifier(), without="classifier")))
    shell = build_shell(Classifier)
    with pytest.raises(MismatchError, match="start with a new head: allow_missing='head'"):
        fill(shell, checkpoint)
    report = fill(shell, checkpoint, allow_missing="head")
    assert {fault.key for fault in report.allowed["allow_missing"]} == {
        "classifier.bias",
        "classifier.weight",
    }
    assert any("classifier" in note and "initialised by the class" in note for note in report.notes)
    checkpoint = open_checkpoint(
        write_checkpoint(tmp_path / "b", {k: v for k, v in stored(Classifier()).items() if "layers" in k})
    )
    assert (
        len(fill(build_shell(Classifier), checkpoint, allow_missing=["head"]).allowed["allow_missing"]) == 4
    )


def test_a_layer_of_the_base_is_never_one(tmp_path):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, stored(Classifier(), without="layers.1")))
    with pytest.raises(MismatchError, match=r"net\.layers\.1") as caught:
        fill(build_shell(Classifier), checkpoint, allow_missing="head")
    assert "allow_missing='head'" not in str(caught.value)


def test_a_stored_head_may_be_left_out(tmp_path):
    class Other(Classifier):
        def __init__(self):
            super().__init__()
            self.classifier = None
            self.answer = nn.Linear(4, 2)

    checkpoint = open_checkpoint(write_checkpoint(tmp_path, stored(Classifier())))
    with pytest.raises(MismatchError) as caught:
        fill(build_shell(Other), checkpoint)
    says = (
        "start with a new head: allow_missing='head', and leave the stored head out: allow_unexpected='head'"
    )
    assert says in str(caught.value)
    report = fill(build_shell(Other), checkpoint, allow_missing="head", allow_unexpected="head")
    assert {fault.key for fault in report.allowed["allow_unexpected"]} == {
        "classifier.bias",
        "classifier.weight",
    }


def test_a_class_without_a_prefix_has_no_head_that_is_known(tmp_path):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, {"weight": torch.ones(2, 4)}))
    with pytest.raises(UsageError, match="Linear has no base_model_prefix"):
        fill(build_shell(lambda: nn.Linear(4, 2)), checkpoint, allow_missing="head")


def test_a_key_of_that_name_is_a_key(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Parameter(torch.zeros(2))
            self.rest = nn.Parameter(torch.zeros(2))

    checkpoint = open_checkpoint(write_checkpoint(tmp_path, {"rest": torch.ones(2)}))
    assert fill(build_shell(Named), checkpoint, allow_missing=["head"]).allowed


@pytest.mark.parametrize(
    ("kind", "key", "slots", "names", "is_one"),
    [
        ("missing", "lm.bias", ["net.a", "lm.bias"], ["net.a"], True),
        ("missing", "net.b", ["net.a", "net.b", "lm.bias"], ["net.a"], False),
        ("missing", "b", ["a", "b"], ["a"], False),  # of a base model
        ("missing", "pooler.dense.weight", ["a", "pooler.dense.weight"], ["a"], True),
        ("missing", "net.layers.0.pooler.weight", ["net.layers.0.pooler.weight"], [], False),
        ("unexpected", "cls.bias", ["a"], ["net.a", "cls.bias"], True),
        ("unexpected", "b", ["a"], ["a", "b"], False),
        ("misshapen", "lm.bias", ["net.a", "lm.bias"], ["net.a", "lm.bias"], False),
    ],
)
def test_what_is_of_a_head(kind, key, slots, names, is_one):
    assert Heads(Base(), slots, names).have(Fault(kind, key)) is is_one
