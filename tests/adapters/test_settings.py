from __future__ import annotations

import time

import pytest
import torch

from shardload.adapters import load_adapter
from shardload.adapters.patterns import Patterns
from shardload.errors import CorruptError, MismatchError, UnsupportedError
from tests.adapters.tiny import PREFIX, Tiny, assert_unchanged, config, lora_tensors, snapshot, write

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


VARIANT_KEYS = {
    "layers.0.q.lora_diag": "KaSA",
    "layers.0.q.lora_velora_projection": "VeLoRA",
    "layers.0.q.lora_arrow.router": "Arrow",
}


@pytest.mark.parametrize("key", VARIANT_KEYS)
def test_variants_are_told_by_their_keys_too(tmp_path, key):
    tensors = lora_tensors(Tiny()) | {PREFIX + key: torch.ones(8)}
    with pytest.raises(UnsupportedError, match=VARIANT_KEYS[key]):
        load_adapter(Tiny(), write(tmp_path, tensors))


BETRAYED = {
    "layers.0.q.lora_magnitude_vector": "use_dora = false",
    "layers.0.up.lora_magnitude_vector.weight": "use_dora = false",
    "layers.0.up.lora_B.bias": "lora_bias = false",
    "layers.0.up.base_layer.bias": "bias = none",
    "embed.token_adapter.trainable_tokens_delta": "trainable_token_indices",
}


@pytest.mark.parametrize("key", BETRAYED)
def test_a_flag_that_is_off_while_the_file_betrays_it(tmp_path, key):
    tensors = lora_tensors(Tiny(), dtype=torch.float32)
    tensors[PREFIX + key] = torch.ones(12 if "up" in key else 8)
    with pytest.raises(MismatchError, match=BETRAYED[key]):
        load_adapter(Tiny(), write(tmp_path, tensors))


FLAGS = {
    "use_dora": (True, "lora_magnitude_vector: the tensor is missing"),
    "lora_bias": (True, "lora_B.bias: the tensor is missing"),
    "bias": ("all", "bias: the tensor is missing"),
    "modules_to_save": (["score"], "score.weight: the tensor is missing"),
    "trainable_token_indices": ([1, 2], "trainable_tokens_delta: the tensor is missing"),
}


@pytest.mark.parametrize("key", FLAGS)
def test_a_flag_that_is_on_while_the_file_lacks_its_tensors(tmp_path, key):
    value, text = FLAGS[key]
    with pytest.raises(MismatchError, match=text):
        load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), config(**{key: value})))


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


def test_the_first_pattern_in_the_config_s_order_counts():
    patterns = Patterns({"q": 1, "layers.1.q": 2, r".*\.up": 3, "up": 4, "^layers.0.down": 5})
    assert patterns.key_for("layers.1.q") == "q"
    assert patterns.key_for("layers.1.up") == r".*\.up"
    assert patterns.key_for("layers.0.down") == "^layers.0.down"
    assert patterns.key_for("model.layers.0.down") is None
    assert patterns.key_for("xq") is None
    assert patterns.idle(["layers.1.q", "layers.1.up"]) == ["layers.1.q", "up", "^layers.0.down"]


def test_a_pattern_for_each_of_many_layers_is_quick():
    paths = [f"model.layers.{n}.self_attn.q_proj" for n in range(5000)]
    patterns = Patterns(dict.fromkeys(paths, 4))
    start = time.perf_counter()
    assert [patterns.key_for(path) for path in paths] == paths
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("pattern", ["(a*)*$", "(.*)+x", "(a)" * 2000, ".*.*.*.*x", "a?" * 30 + "a" * 30])
def test_patterns_that_run_for_ages_are_refused(tmp_path, pattern):
    start = time.perf_counter()
    with pytest.raises(UnsupportedError, match="alpha_pattern"):
        load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), config(alpha_pattern={pattern: 4})))
    assert time.perf_counter() - start < 2
