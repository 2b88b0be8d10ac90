"""Names that an adapter can have, and models that it can be attached to."""

from __future__ import annotations

import pytest

from shardload.adapters import load_adapter
from shardload.errors import UsageError
from tests.adapters.tiny import (
    Tiny,
    lora_tensors,
    write,
)


@pytest.mark.parametrize("name", ["", "a.b", "type", "keys", "training", "forward"])
def test_names_that_can_not_be(tmp_path, name):
    with pytest.raises(UsageError, match="name of an adapter"):
        load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny())), name=name)


def test_what_is_no_model(tmp_path):
    with pytest.raises(UsageError, match="not to a dict"):
        load_adapter({}, tmp_path)
