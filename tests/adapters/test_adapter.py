"""What the files of all formats have in common: scales, clean module paths, the caller's options."""

from __future__ import annotations

import math

import pytest

from shardload.adapters import load_adapter
from shardload.adapters.adapter import canonical
from shardload.errors import (
    NotFoundError,
    UsageError,
)
from tests.adapters.tiny import (
    TOKENS,
    Tiny,
    by_hand,
    config,
    error,
    lora_tensors,
    write,
)


def test_rank_stabilised_scale(tmp_path):
    model = Tiny()
    tensors = lora_tensors(model)
    load_adapter(model, write(tmp_path, tensors, config(use_rslora=True)))
    assert error(model(TOKENS), by_hand(Tiny(), tensors, 6 / math.sqrt(2))) <= 1e-5


def test_alpha(tmp_path):
    tensors = lora_tensors(Tiny())
    model = Tiny()
    report = load_adapter(model, write(tmp_path / "a", tensors), alpha=4)
    assert report.scales == {2.0: 6}
    assert any("alpha = 4 was given; the config's is 6" in warning for warning in report.warnings)
    assert error(model(TOKENS), by_hand(Tiny(), tensors, 2.0)) <= 1e-5
    bare = write(tmp_path / "b", tensors, False)
    with pytest.raises(NotFoundError, match="or pass alpha="):
        load_adapter(Tiny(), bare)
    assert load_adapter(Tiny(), bare, alpha=4).scales == {2.0: 6}
    for wrong in (float("nan"), "16", 1e300):
        with pytest.raises(UsageError, match="alpha must be a number"):
            load_adapter(Tiny(), bare, alpha=wrong)


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("base_model.model.layers.0.q", "layers.0.q"),
        ("module.base_model.model.layers.0.q", "layers.0.q"),
        ("_orig_mod.base_model.model._orig_mod.layers.0._orig_mod.q", "layers.0.q"),
        ("base_model.model.base_model.model.layers.0.q", "layers.0.q"),
        ("_fsdp_wrapped_module.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.q", "layers.0.q"),
        ("layers.0.module.q", "layers.0.module.q"),
        ("base_model.models.q", "base_model.models.q"),
        ("my_orig_mod.q", "my_orig_mod.q"),
        ("base_model.model", ""),
        ("", ""),
    ],
)
def test_canonical(path, clean):
    assert canonical(path) == clean
