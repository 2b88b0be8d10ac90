"""Variants of LoRA are declined by name."""

from __future__ import annotations

import pytest

from shardload.adapters import load_adapter
from shardload.errors import UnsupportedError
from tests.adapters.tiny import Tiny, assert_unchanged, config, lora_tensors, snapshot, write

DECLINED = {
    "use_qalora": True,
    "use_bdlora": {"target_modules_bd_a": ["q"]},
    "kasa_config": {},
    "arrow_config": {"top_k": 3},
    "alora_invocation_tokens": [1, 2],
    "velora_config": {"num_groups": 4},
    "monteclora_config": {"n": 4},
    "megatron_config": {"tp": 2},
    "ensure_weight_tying": True,
    "init_lora_weights": "pissa_niter_16",
    "rank_pattern": {"(q+)+": 2},
    "setting_of_tomorrow": "on",
}


@pytest.mark.parametrize("key", DECLINED)
def test_variants_are_declined_by_name(tmp_path, key):
    model = Tiny()
    before = snapshot(model)
    with pytest.raises(UnsupportedError, match=key):
        load_adapter(model, write(tmp_path, lora_tensors(model), config(**{key: DECLINED[key]})))
    assert_unchanged(model, before)


@pytest.mark.parametrize("init", ["corda", "lora_ga", "loftq", "pissa_niter_4"])
def test_initialisations_that_change_the_base(tmp_path, init):
    with pytest.raises(UnsupportedError, match="the base weights"):
        load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), config(init_lora_weights=init)))


@pytest.mark.parametrize("init", ["gaussian", "eva", "orthogonal", "mica", True, False, None])
def test_initialisations_that_do_not(tmp_path, init):
    load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), config(init_lora_weights=init)))


@pytest.mark.parametrize("kind", ["IA3", "ADALORA", "PROMPT_TUNING", None, 3])
def test_other_types(tmp_path, kind):
    with pytest.raises(UnsupportedError, match="is of type"):
        load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), config(peft_type=kind)))


def test_a_setting_that_is_not_known_has_a_cure_that_cures(tmp_path):
    folder = write(tmp_path, lora_tensors(Tiny()), config(setting_of_tomorrow="on"))
    with pytest.raises(UnsupportedError, match="not known") as caught:
        load_adapter(Tiny(), folder)
    assert "strict=False" in caught.value.cure
    assert any(
        "setting_of_tomorrow" in warning for warning in load_adapter(Tiny(), folder, strict=False).warnings
    )


def test_settings_that_only_steer_the_training_of_other_tools_are_no_variants(tmp_path):
    inert = {
        "lora_dtype": "float32",
        "lorap_lr_ratio": 16.0,
        "lorap_emb_lr": 1e-6,
        "_from_model_config": True,
    }
    assert load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), config(**inert))).modules
