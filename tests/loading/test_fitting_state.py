"""state_that_fits: the one state dict of several that fits the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import UnsupportedError
from shardload.checkpoint.checkpoint import open_checkpoint
from shardload.errors import CorruptError, UntrustedCodeError
from shardload.loading.fitting_state import state_that_fits
from shardload.model.shell import build_shell
from shardload.where import Where


@pytest.fixture
def several(tmp_path):
    """The error of a file with two state dicts, and its place."""
    path = tmp_path / "training.pt"
    torch.save({"student": nn.Linear(2, 3).state_dict(), "teacher": nn.Linear(4, 5).state_dict()}, path)
    place = Where(str(path))
    with pytest.raises(UnsupportedError) as raised:
        open_checkpoint(place)
    return raised.value, place


def test_the_one_that_fits_is_named(several):
    error, place = several
    assert (
        state_that_fits(error, place, lambda _: build_shell(lambda: nn.Linear(2, 3))).state_dict == "student"
    )
    with pytest.raises(UnsupportedError):
        state_that_fits(error, place, lambda _: build_shell(lambda: nn.Linear(7, 3)))


def test_an_error_of_trust_says_nothing_of_the_state_dict(several):
    error, place = several

    def shell(_checkpoint):
        raise UntrustedCodeError("not trusted")

    with pytest.raises(UntrustedCodeError, match="not trusted"):
        state_that_fits(error, place, shell)

    def broken(_checkpoint):
        raise CorruptError("no shell")

    with pytest.raises(UnsupportedError):
        state_that_fits(error, place, broken)
