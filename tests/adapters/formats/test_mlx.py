"""mlx-lm's adapters: transposed factors, a scale that is the whole factor, and what is declined."""

from __future__ import annotations

import pytest
import torch

from shardload.adapters import load_adapter
from shardload.adapters.adapter import ReadOptions
from shardload.adapters.formats.mlx import MlxLm
from shardload.adapters.source import open_adapter
from shardload.errors import CorruptError, UnsupportedError, UsageError
from tests.adapters.tiny import TOKENS, Tiny, by_hand, error, lora_tensors, write

SETTINGS = {
    "fine_tune_type": "lora",
    "model": "org/base",
    "lora_parameters": {"rank": 2, "scale": 3.0, "dropout": 0.25},
}


def mlx_tensors():
    """Return PEFT's factors, and the same as mlx-lm stores them."""
    tensors = lora_tensors(Tiny())
    ends = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b"}
    turned = {}
    for key, value in tensors.items():
        path, _, end = key.removeprefix("base_model.model.").partition(".lora_")
        turned[f"{path}.{ends['lora_' + end]}"] = value.T
    return tensors, turned


def read(tmp_path, tensors, settings, **options):
    file = open_adapter(write(tmp_path, tensors, settings))
    assert MlxLm().matches(file)
    return MlxLm().read(file, ReadOptions(**options))


def test_it_is_the_adapter_that_the_turned_factors_are(tmp_path):
    tensors, turned = mlx_tensors()
    model = Tiny()
    load_adapter(model, write(tmp_path, turned, SETTINGS))
    assert error(model(TOKENS), by_hand(Tiny(), tensors, 3.0)) <= 1e-5


def test_what_the_config_says_is_in_every_entry(tmp_path):
    content = read(tmp_path, mlx_tensors()[1], SETTINGS)
    assert (content.base, content.format, content.faults) == ("org/base", "mlx-lm lora", ())
    assert len(content.loras) == 6
    for entry in content.loras:
        assert (entry.columns, entry.dropout, entry.stated_rank) == (True, 0.25, 2)
        assert entry.scaling.of(7) == 3.0  # not divided by the rank


def test_before_0_16_the_scale_was_multiplied_by_alpha_over_rank(tmp_path):
    old = {"lora_parameters": {"rank": 2, "scale": 3.0, "alpha": 8.0}}
    assert read(tmp_path, mlx_tensors()[1], old).loras[0].scaling.of(2) == 12.0


def test_the_caller_may_give_the_scale_that_a_lone_file_lacks(tmp_path):
    _, turned = mlx_tensors()
    with pytest.raises(UsageError, match="the scale of an mlx-lm adapter"):
        read(tmp_path, turned, False)
    assert read(tmp_path, turned, False, alpha=6.0).loras[0].scaling.of(2) == 3.0


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({**SETTINGS, "fine_tune_type": "full"}, UnsupportedError, "mlx-lm's type 'full'"),
        ({"lora_parameters": []}, CorruptError, "lora_parameters must be an object"),
        ({"lora_parameters": {"scale": "3"}}, CorruptError, "1 settings of the adapter's config"),
        ({"lora_parameters": {"scale": 1.0, "rank": -1, "dropout": 2}}, CorruptError, "2 settings"),
    ],
)
def test_settings_that_no_adapter_has(tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        read(tmp_path, mlx_tensors()[1], settings)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("kind", "has_magnitude"), [("dora", False), ("lora", True)])
def test_a_type_that_the_tensors_contradict_is_a_fault(tmp_path, kind, has_magnitude, strict):
    tensors = {"score.lora_a": torch.ones(8, 2), "score.lora_b": torch.ones(2, 3)}
    if has_magnitude:
        tensors["score.m"] = torch.ones(3)
    content = read(tmp_path, tensors, {**SETTINGS, "fine_tune_type": kind}, strict=strict)
    wanted = [] if kind == "lora" and not strict else [("config" if has_magnitude else "missing", "score.m")]
    assert [(fault.kind, fault.key) for fault in content.faults] == wanted
    assert (content.loras[0].magnitude is not None) is has_magnitude


def test_peft_s_keys_are_not_mlx_s(tmp_path):
    assert not MlxLm().matches(open_adapter(write(tmp_path, lora_tensors(Tiny()))))
