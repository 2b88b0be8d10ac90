"""Loaders that write into the weights that they have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import MismatchError, fill, open_checkpoint
from tests.operations import Operations
from tests.tiny import assert_same_state, build_shell, torch_filled, write_checkpoint


def test_an_override_that_copies_in_place_fills_a_shell(tmp_path):
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4))

        def _load_from_state_dict(self, state, prefix, *_args) -> None:
            with torch.no_grad():
                self.weight.copy_(state[f"{prefix}stored"] * 2)

    shell = build_shell(InPlace)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, {"stored": torch.ones(4)}, shards=1)))
    assert torch.equal(shell.model.weight, torch.full((4,), 2.0))


class Ignoring(nn.Module):
    def __init__(self, weight: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 5.0) if weight is None else weight)

    def _load_from_state_dict(self, *_args) -> None:
        pass


IGNORED = {"0.weight": torch.ones(4), "1.weight": torch.ones(2, 2), "1.bias": torch.ones(2)}


def test_an_override_that_ignores_its_weight_leaves_it_as_the_class_makes_it(tmp_path):
    make = lambda: nn.Sequential(Ignoring(), nn.Linear(2, 2))  # noqa: E731
    shell = build_shell(make)
    report = fill(shell, open_checkpoint(write_checkpoint(tmp_path, IGNORED)))
    assert_same_state(shell.model, torch_filled(make, IGNORED))
    assert torch.equal(shell.model[0].weight, torch.full((4,), 5.0))
    assert any("was handed 1 tensors and filled 0" in note for note in report.notes)


def test_an_override_that_ignores_its_weight_never_leaves_it_uninitialised(tmp_path):
    shell = build_shell(lambda: nn.Sequential(Ignoring(torch.empty(4)), nn.Linear(2, 2)))
    with pytest.raises(MismatchError, match=r"0\.weight"):
        fill(shell, open_checkpoint(write_checkpoint(tmp_path, IGNORED)))


class Padding(nn.Module):
    """Writes the stored rows in place, and leaves the padding rows below unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5, 2))

    def _load_from_state_dict(self, state, prefix, *_args) -> None:
        with torch.no_grad():
            self.weight[:3].copy_(state[f"{prefix}weight"])


def test_an_override_that_writes_a_part_leaves_the_rest_as_the_class_makes_it(tmp_path):
    state = {"weight": torch.ones(3, 2)}
    shell = build_shell(Padding)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, state, shards=1)))
    assert torch.equal(shell.model.weight, torch_filled(Padding, state).weight)


def test_an_override_that_copies_in_place_into_a_real_module_is_undone(tmp_path):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Padding(), nn.Linear(2, 2)

    state = {"a.weight": torch.ones(3, 2), "b.weight": torch.ones(2, 2), "b.bias": torch.ones(2)}
    model = Two()

    def stop(_progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(model, open_checkpoint(write_checkpoint(tmp_path, state, shards=1)), progress=stop)
    assert torch.equal(model.a.weight, torch.zeros(5, 2))


def test_an_override_that_assigns_as_torch_does_needs_no_memory(tmp_path):
    class Passing(nn.Linear):
        def _load_from_state_dict(self, *args) -> None:
            super()._load_from_state_dict(*args)

    shell = build_shell(lambda: Passing(512, 512))
    folder = write_checkpoint(tmp_path, {"weight": torch.ones(512, 512), "bias": torch.ones(512)}, shards=1)
    with Operations() as operations:
        fill(shell, open_checkpoint(folder))
    assert not {"full", "clone", "fill_"} & set(operations.names)
