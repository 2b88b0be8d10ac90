"""adapter_config.json: values that no adapter can have, broken files, configs of other ages."""

from __future__ import annotations

import json

import pytest

from shardload.adapters import load_adapter
from shardload.adapters.settings import read_settings
from shardload.errors import (
    CorruptError,
)
from tests.adapters.tiny import (
    Tiny,
    assert_unchanged,
    config,
    lora_tensors,
    snapshot,
    write,
)

WRONG = [
    ("enable_lora", [1, 0]),
    ("enable_lora", []),
    ("layer_replication", [[2, 1]]),
    ("layer_replication", [[0, 10**9]]),
    ("layer_replication", [[0, 4000], [0, 4000]]),
    ("trainable_token_indices", [1, 1]),
    ("trainable_token_indices", [-1]),
    ("trainable_token_indices", {"embed": "1"}),
    ("target_parameters", "experts"),
    ("use_dora", "yes"),
    ("r", 0),
    ("r", -4),
    ("r", True),
    ("r", 2.0),
    ("r", "8"),
    ("r", 10**400),
    ("lora_alpha", None),
    ("lora_alpha", "16"),
    ("lora_alpha", float("nan")),
    ("lora_alpha", float("inf")),
    ("lora_alpha", 10**400),
    ("lora_dropout", 1.5),
    ("lora_dropout", -0.1),
    ("bias", "some"),
    ("bias", ["all"]),
    ("use_rslora", "false"),
    ("lora_bias", 1),
    ("modules_to_save", "score"),
    ("modules_to_save", [""]),
    ("rank_pattern", {"q": 0}),
    ("rank_pattern", ["q"]),
    ("rank_pattern", {"(": 4}),
    ("alpha_pattern", {"q": "16"}),
    ("base_model_name_or_path", 7),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_values_that_no_adapter_can_have(tmp_path, key, value):
    model = Tiny()
    before = snapshot(model)
    with pytest.raises(CorruptError, match=key):
        load_adapter(model, write(tmp_path, lora_tensors(model), config(**{key: value})))
    assert_unchanged(model, before)


def test_all_wrong_values_are_named_together(tmp_path):
    with pytest.raises(
        CorruptError, match=r"r must be .*; lora_alpha must be .*|lora_alpha must be .*; r must be"
    ):
        load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), config(r=0, lora_alpha="x")))


@pytest.mark.parametrize(
    "text",
    [
        '{"r": 2, "r": 4, "lora_alpha": 6}',
        "[]",
        "",
        '{"r": 2',
        "\xff",
        "[" * 100_000,
        '{"r": ' + "1" * 5000 + "}",
    ],
)
def test_broken_config_files(tmp_path, text):
    folder = write(tmp_path, lora_tensors(Tiny()))
    (folder / "adapter_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CorruptError, match=r"adapter_config\.json"):
        load_adapter(Tiny(), folder)


def test_control_characters_are_escaped(tmp_path):
    with pytest.raises(CorruptError) as raised:
        load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), config(bias="\x1b[2J\u202e")))
    assert "\x1b" not in str(raised.value)
    assert "\u202e" not in str(raised.value)


def test_configs_of_other_ages_and_tools(tmp_path):
    old = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 6,
        "merge_weights": False,
        "enable_lora": None,
        "bias": "none",
    }
    old |= {"fan_in_fan_out": True, "base_model_name_or_path": "org/base", "task_type": "CAUSAL_LM"}
    new = config(qalora_group_size=16, megatron_core="megatron.core", loftq_config={}, peft_version="0.21.2")
    new |= {
        "eva_config": None,
        "corda_config": None,
        "kasa_config": None,
        "use_bdlora": None,
        "alpha_pattern": {},
    }
    new |= {"runtime_config": {"ephemeral_gpu_offload": False}, "auto_mapping": {"base_model_class": "X"}}
    for number, settings in enumerate((old, new)):
        report = load_adapter(Tiny(), write(tmp_path / str(number), lora_tensors(Tiny()), settings))
        assert report.warnings == ()
        assert report.scales == {3.0: 6}


ABSURD = [
    {"r": 2**40},
    {"rank_pattern": {"q": 10**9}},
    {"trainable_token_indices": [2**40]},
    {"layer_replication": [[0, 10**12]]},
    {"enable_lora": [True] * 10_000},
    {"lora_alpha": 1e308},
]


@pytest.mark.parametrize("settings", ABSURD, ids=lambda settings: next(iter(settings)))
def test_absurd_numbers_are_refused_before_memory_is_taken(tmp_path, settings):
    model = Tiny()
    before = snapshot(model)
    with pytest.raises(CorruptError, match=next(iter(settings))):
        load_adapter(model, write(tmp_path, lora_tensors(model), config(**settings)))
    assert_unchanged(model, before)


def test_settings_twice_in_a_config(tmp_path):
    folder = write(tmp_path, lora_tensors(Tiny()))
    text = json.dumps(config())[:-1] + ', "lora_alpha": 600}'
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(CorruptError, match="lora_alpha"):
        load_adapter(Tiny(), folder)


def read(**settings):
    return read_settings({"lora_alpha": 8, "r": 4, **settings}, "here", strict=True)


def test_every_layer_has_the_rank_and_scale_of_its_pattern():
    found = read(rank_pattern={"q": 2}, alpha_pattern={"layers.0.q": 6}, use_rslora=False)
    assert [found.rank(path) for path in ("layers.0.q", "layers.1.q", "k")] == [2, 2, 4]
    assert [found.scaling(path).of(2) for path in ("layers.0.q", "layers.1.q")] == [3.0, 4.0]
    assert read(use_rslora=True).scaling("k").of(4) == 4.0
    assert found.idle_patterns(["layers.0.q"]) == []
    assert found.idle_patterns(["k"]) == ["q", "layers.0.q"]


def test_modules_to_save_are_those_named_and_what_is_inside_them():
    found = read(modules_to_save=["head"], task_type="SEQ_CLS")
    assert [found.saves(path) for path in ("head", "a.head.dense", "score", "heading", "q")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(CorruptError, match="3 settings") as caught:
        read(r=0, lora_dropout=2, bias="some")
    for key in ("r must be", "lora_dropout must be", "bias must be"):
        assert key in caught.value.where
