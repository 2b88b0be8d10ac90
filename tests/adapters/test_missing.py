"""Tensors that the config promises and the file lacks."""

from __future__ import annotations

from shardload.adapters import load_adapter
from tests.adapters.tiny import (
    Tiny,
    config,
    lora_tensors,
    write,
)


def test_lora_only_biases_that_peft_never_saved_are_a_warning(tmp_path):
    report = load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), config(bias="lora_only")))
    assert any("PEFT 0.7 to 0.20 did not save them" in warning for warning in report.warnings)
