"""Faults that the caller or the class allows, by pattern, by name or as a head."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import (
    MismatchError,
    UsageError,
    build_shell,
    check,
    fill,
    open_checkpoint,
)
from shardload.loading.leniency import set_aside
from shardload.loading.plan import match
from shardload.placement.target import Target
from tests.tiny import Net, assert_same_state, meta_names, random_state, torch_filled, write_checkpoint


def test_a_missing_parameter_that_is_allowed_gets_the_class_value(tmp_path):
    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.full((8,), 3.0))
            self.more = nn.Linear(4, 4)
            nn.init.constant_(self.more.bias, 7.0)

    shell = build_shell(Scaled)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(Net())))
    report = fill(shell, checkpoint, allow_missing=["gain", "more.*"])
    assert torch.equal(shell.model.gain, torch.full((8,), 3.0))
    assert torch.equal(shell.model.more.bias, torch.full((4,), 7.0))
    assert 0 < float(shell.model.more.weight.detach().abs().max()) <= 0.5
    assert meta_names(shell.model) == []
    assert any("gain: not in the checkpoint, initialised by the class" in note for note in report.notes)
    assert {f.key for f in report.allowed["allow_missing"]} == {"gain", "more.weight", "more.bias"}


def test_a_skipped_parameter_that_is_initialised_later_gets_its_value(tmp_path):
    """A parameter has to have the same place in the order of creation when the constructor runs again."""

    class Head(Net):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.utils.skip_init(nn.Linear, 4, 4)
            self.second = nn.utils.skip_init(nn.Linear, 4, 4)
            self.third = nn.Parameter(torch.full((2,), 3.0))
            nn.init.constant_(self.second.weight, 2.0)
            nn.init.zeros_(self.second.bias)

    state = random_state(Net()) | {"first.weight": torch.ones(4, 4), "first.bias": torch.ones(4)}
    shell = build_shell(Head)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, state)), allow_missing=["second.*", "third"])
    assert torch.equal(shell.model.second.weight, torch.full((4, 4), 2.0))
    assert torch.equal(shell.model.second.bias, torch.zeros(4))
    assert torch.equal(shell.model.third, torch.full((2,), 3.0))
    assert torch.equal(shell.model.first.weight, torch.ones(4, 4))


def test_a_missing_parameter_that_the_class_leaves_uninitialised_is_an_error(tmp_path):
    class Uninitialised(Net):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.utils.skip_init(nn.Linear, 4, 4)

    shell = build_shell(Uninitialised)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(Net())))
    with pytest.raises(MismatchError, match="leaves it uninitialised"):
        fill(shell, checkpoint, allow_missing=["more.*"])
    assert all(p.is_meta for p in shell.model.parameters()), "nothing half done"


def test_unexpected_that_is_allowed_is_left_out(tmp_path):
    state = random_state(Net())
    shell = build_shell(Net)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, {**state, "extra": torch.zeros(2)}))
    report = fill(shell, checkpoint, allow_unexpected=["extra"])
    assert_same_state(shell.model, torch_filled(Net, state))
    assert [f.key for f in report.allowed["allow_unexpected"]] == ["extra"]


@pytest.mark.parametrize("argument", ["allow_missing", "allow_unexpected"])
@pytest.mark.parametrize(("pattern", "says"), [("nope.*", "matches no key"), ("*", "matches every key")])
def test_a_pattern_that_matches_nothing_or_everything_is_an_error(tmp_path, argument, pattern, says):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(Net())))
    with pytest.raises(UsageError, match=says):
        fill(build_shell(Net), checkpoint, **{argument: [pattern]})


def test_a_bare_text_is_no_list_of_patterns(tmp_path):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(Net())))
    with pytest.raises(UsageError, match="takes a list"):
        fill(build_shell(Net), checkpoint, allow_missing="head.weight")


def test_strict_false_reports_what_it_let_pass(tmp_path):
    state = random_state(Net())
    del state["head.weight"]
    report = fill(
        build_shell(Net),
        open_checkpoint(write_checkpoint(tmp_path, {**state, "x": torch.ones(1)})),
        strict=False,
    )
    assert {f.key for f in report.allowed["strict=False"]} == {"head.weight", "x"}


def test_strict_false_does_not_let_shapes_pass(tmp_path):
    state = {**random_state(Net()), "head.weight": torch.zeros(1, 1)}
    with pytest.raises(MismatchError, match="1 misshapen"):
        fill(build_shell(Net), open_checkpoint(write_checkpoint(tmp_path, state)), strict=False)


def test_a_fault_is_set_aside_by_who_allows_it(tmp_path):
    class Forgiving(Net):
        _keys_to_ignore_on_load_unexpected = ("old\\..*",)

    stored = {**random_state(Net()), "old.a": torch.ones(1), "extra": torch.ones(1), "other": torch.ones(1)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, stored))
    shell = build_shell(Forgiving)
    plan = match(shell, shell.tree, checkpoint, None, Target())
    faults, allowed = set_aside(plan, shell, checkpoint.tensors, allow_unexpected=["ext*"])
    assert [fault.key for fault in faults] == ["other"]
    assert {reason: [fault.key for fault in found] for reason, found in allowed.items()} == {
        "allow_unexpected": ["extra"],
        "the class's _keys_to_ignore_on_load_unexpected": ["old.a"],
    }


_TEMPLATES = (
    "extra.{}.w", "extra.{...}", "{...}.w", "extra.*", "*.w", "extra.?.w", "extra.[01].w", "extra[.]0.w", "a[*]b",
    "a*b", "extra.0.w", "extra", "EXTRA.*", "{}.w", "extra.{}.{...}", "x{}y",
)  # fmt: skip
_KEYS = ("extra.0.w", "extra.1.w", "extra.10.w", "extra.a.w", "extra.0.b.w", "a*b", "axb", "3.w", "x7y", "xy")


@pytest.mark.parametrize("pattern", _TEMPLATES)
def test_a_pattern_that_is_allowed_and_one_that_a_key_map_drops_mean_the_same_keys(tmp_path, pattern):
    net = Net()
    state = {**random_state(net), **{key: torch.ones(1) for key in _KEYS}}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state, shards=1))
    dropped = check(build_shell(Net), checkpoint, key_map={pattern: None})
    left = {fault.key for fault in dropped.faults}
    with pytest.raises((UsageError, MismatchError)) as caught:
        fill(build_shell(Net), checkpoint, allow_unexpected=[pattern])
    report = getattr(caught.value, "report", None)  # none where the pattern matches no key
    assert left == ({fault.key for fault in report.faults} if report else set(_KEYS))
