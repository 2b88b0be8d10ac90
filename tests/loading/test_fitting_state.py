"""state_that_fits: the one state dict of several that fits the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import UnsupportedError, from_pretrained
from shardload.checkpoint.checkpoint import open_checkpoint
from shardload.errors import CorruptError, UntrustedCodeError
from shardload.loading.fitting_state import state_that_fits
from shardload.model.shell import build_shell
from shardload.where import Where
from tests.cures.kinds import choices
from tests.cures.typed import typed
from tests.tiny import random_state


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


class Two(nn.Module):
    def __init__(self, config: object = None) -> None:
        super().__init__()
        self.trunk, self.out = nn.Linear(4, 6), nn.Linear(6, 3)


def test_the_cures_of_several_that_a_map_makes_fit_work_as_they_are_printed(tmp_path):
    """A GAN's two networks as DataParallel saves them: only the one that can be the model is offered, with its map."""
    state = random_state(Two())
    other = {"module.a.weight": torch.ones(5, 7), "module.b.weight": torch.ones(2, 9)}
    torch.save(
        {"generator": {f"module.{key}": value for key, value in state.items()}, "discriminator": other},
        tmp_path / "gan.pt",
    )
    with pytest.raises(UnsupportedError) as caught:
        from_pretrained(tmp_path / "gan.pt", model_class=Two, progress=False)
    (cure,) = choices(caught.value.cure)
    assert cure == "pass state_dict='generator' and key_map={'module.{...}': '{...}'}"
    model = from_pretrained(tmp_path / "gan.pt", model_class=Two, progress=False, **typed(cure).keywords)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_whole_state_dict_is_offered_before_a_part_of_one(tmp_path):
    one, two = random_state(Two()), random_state(Two(), seed=1)
    torch.save(
        {
            "student": {f"module.backbone.{key}": value for key, value in one.items()},
            "teacher": {f"backbone.{key}": value for key, value in two.items()},
            "loss": {"center": torch.ones(3)},
            "head": {key: value for key, value in one.items() if key.startswith("out")},
        },
        tmp_path / "dino.pt",
    )
    with pytest.raises(UnsupportedError) as caught:
        from_pretrained(tmp_path / "dino.pt", model_class=Two, progress=False)
    cures = choices(caught.value.cure)
    assert len(cures) == 2
    for cure, state in zip(cures, (one, two), strict=True):
        model = from_pretrained(tmp_path / "dino.pt", model_class=Two, progress=False, **typed(cure).keywords)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
