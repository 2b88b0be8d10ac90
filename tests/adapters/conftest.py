"""Models with several adapters, for the tests of which of them run."""

from __future__ import annotations

import pytest

from shardload import load_adapter
from tests.adapters.tiny import Tiny, config, head, lora_tensors, write


@pytest.fixture
def model(tmp_path):
    """Adapters "a" and "b" of different ranks on different layers, scale 3 and 2."""
    model = Tiny()
    load_adapter(model, write(tmp_path / "a", lora_tensors(model)), name="a")
    b = lora_tensors(model, names=("q", "down"), rank=3, seed=5)
    load_adapter(model, write(tmp_path / "b", b, config(r=3)), name="b")
    return model


@pytest.fixture
def saving(tmp_path):
    """Adapter "plain", and "whole" that replaces the head."""
    model = Tiny()
    load_adapter(model, write(tmp_path / "plain", lora_tensors(model)), name="plain")
    tensors = {**lora_tensors(model, seed=1), **head(2)}
    load_adapter(model, write(tmp_path / "whole", tensors, config(modules_to_save=["score"])), name="whole")
    return model
