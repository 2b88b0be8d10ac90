"""A class of the caller's that takes no config: one typed error; every other error of it stays as it is."""

from __future__ import annotations

import pytest
from torch import nn

from shardload import UsageError, from_pretrained
from shardload.doctor import examine
from tests.tiny import write_checkpoint


class NoConfig(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)


class Wide(nn.Linear):
    def __init__(self, width=4):
        super().__init__(width, 2)


class Doubled(nn.Linear):
    def __init__(self, width=2):
        super().__init__(2 * width, 2)


class ByName(nn.Linear):
    def __init__(self, *, width=4):
        super().__init__(width, 2)


class Broken(nn.Linear):
    def __init__(self, config):
        super().__init__(config + 1, 2)


class Inner(nn.Linear):
    def __init__(self, config):
        super().__init__(4, 2)
        nn.ReLU(1, 2, 3)


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path, nn.Linear(4, 2).state_dict())


@pytest.mark.parametrize("call", [from_pretrained, examine])
@pytest.mark.parametrize("kind", [NoConfig, Wide, Doubled, ByName, nn.Linear])
def test_a_class_that_takes_no_config(folder, kind, call):
    with pytest.raises(UsageError) as caught:
        call(folder, model_class=kind)
    assert caught.value.cure.endswith(f": make = lambda config: {kind.__name__}(…)")
    assert type(caught.value.__cause__) is TypeError
    if kind is not nn.Linear:
        call(folder, model_class=lambda config: kind())


@pytest.mark.parametrize("kind", [Broken, Inner])
def test_other_errors_of_the_class_stay_as_they_are(folder, kind):
    with pytest.raises(TypeError) as caught:
        from_pretrained(folder, model_class=kind)
    assert caught.value.__cause__ is None
