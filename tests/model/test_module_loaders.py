"""Modules that load themselves: hooks, stored versions, extra state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import check, fill, open_checkpoint
from tests.tiny import (
    Net,
    assert_same_state,
    build_shell,
    meta_names,
    random_state,
    torch_filled,
    write_checkpoint,
)


class RenamingRoot(nn.Module):
    """A hook of the root renames keys: the whole checkpoint has to pass through the hook at once."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(layers))
        self._register_load_state_dict_pre_hook(self._rename)

    def _rename(self, state, prefix, *_args) -> None:
        for key in [key for key in state if key.startswith(f"{prefix}old.")]:
            state[key.replace("old.", "layers.", 1)] = state.pop(key)


def test_a_root_hook_that_renames_loses_nothing(tmp_path):
    state = random_state(RenamingRoot())
    old = {key.replace("layers.", "old."): value for key, value in state.items()}
    shell = build_shell(RenamingRoot)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, old)))
    assert_same_state(shell.model, torch_filled(RenamingRoot, old))
    assert torch.equal(shell.model.layers[3].bias, state["layers.3.bias"])


def test_num_batches_tracked_of_an_old_checkpoint_is_not_missing(tmp_path):
    """torch fills the tensor in when the stored version is below 2; a .bin without _metadata has no version."""
    state = random_state(Net())
    del state["stats.num_batches_tracked"]
    shell = build_shell(Net)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, state, kind="bin")))
    assert meta_names(shell.model) == []
    assert (
        int(shell.model.stats.num_batches_tracked)
        == int(torch_filled(Net, state).stats.num_batches_tracked)
        == 0
    )


def test_metadata_versions_reach_the_modules(tmp_path):
    """With a stored version 2 the same key is missing, as in torch."""
    model = Net()
    state = model.state_dict()
    del state["stats.num_batches_tracked"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        Net().load_state_dict(torch.load(tmp_path / "pytorch_model.bin", weights_only=True))
    report = check(build_shell(Net), open_checkpoint(tmp_path))
    assert [(f.kind, f.key) for f in report.faults] == [("missing", "stats.num_batches_tracked")]


class Extra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.steps = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


def test_extra_state_is_loaded(tmp_path):
    model = Extra()
    model.steps = 7
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    shell = build_shell(Extra)
    fill(shell, open_checkpoint(tmp_path))
    assert shell.model.steps == 7
    assert torch.equal(shell.model.linear.weight, model.linear.weight)


def test_extra_state_that_is_lacking_is_missing(tmp_path):
    state = {key: value for key, value in Extra().state_dict().items() if key != "_extra_state"}
    report = check(build_shell(Extra), open_checkpoint(write_checkpoint(tmp_path, state)))
    assert [(f.kind, f.key) for f in report.faults] == [("missing", "_extra_state")]
