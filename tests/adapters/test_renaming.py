"""key_map: the module paths of a file under the model's names."""

from __future__ import annotations

import pytest

from shardload import KeyMap
from shardload.adapters import load_adapter
from shardload.errors import (
    MismatchError,
)
from tests.adapters.tiny import (
    TOKENS,
    Tiny,
    by_hand,
    error,
    lora_tensors,
    write,
)


def test_a_key_map_renames_tensors_and_modules(tmp_path):
    tensors = lora_tensors(Tiny())
    others = {
        key.replace("layers.", "h.").replace(".q.", ".query.").replace(".up.", ".ffn.up."): value
        for key, value in tensors.items()
    }
    folder = write(tmp_path, others)
    with pytest.raises(MismatchError):
        load_adapter(Tiny(), folder)
    for key_map in (
        {
            "h.{}.query.weight": "layers.{}.q.weight",
            "h.{}.ffn.up": "layers.{}.up",
            "h.{}.down": "layers.{}.down",
        },
        KeyMap()
        .rename("h.{}.{...}", "layers.{}.{...}")
        .rename("{...}.query.weight", "{...}.q.weight")
        .rename("{...}.ffn.up.weight", "{...}.up.weight"),
    ):
        model = Tiny()
        load_adapter(model, folder, key_map=key_map)
        assert error(model(TOKENS), by_hand(Tiny(), tensors, 3.0)) <= 1e-5


def test_what_a_key_map_drops_is_left_out_and_said(tmp_path):
    tensors = lora_tensors(Tiny())
    model = Tiny()
    report = load_adapter(model, write(tmp_path, tensors), key_map={"layers.1.*": None})
    assert report.modules == 3
    assert any("left out by key_map: layers.1" in warning for warning in report.warnings)
    kept = {key: value for key, value in tensors.items() if "layers.0" in key}
    assert error(model(TOKENS), by_hand(Tiny(), kept, 3.0)) <= 1e-5
