"""adapter_config: settings that still hold are kept, the others are written out layer by layer."""

from __future__ import annotations

import json

import pytest

from shardload import load_adapter, save_adapter
from shardload.adapters.adapter_config import LayerSetting, adapter_config
from shardload.adapters.settings import read_settings
from shardload.adapters.targets import targets_of
from tests.adapters.tiny import Tiny, config, lora_tensors, write


def test_settings_of_the_file_are_kept(tmp_path):
    model = Tiny()
    settings = config(
        task_type="CAUSAL_LM", revision="abc", target_modules=["q", "up", "down"], lora_dropout=0.25
    )
    load_adapter(model, write(tmp_path / "a", lora_tensors(model), settings), name="mine")
    save_adapter(model, tmp_path / "b", "mine")
    stored = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert settings.items() <= stored.items()
    assert stored["inference_mode"] is True


def test_settings_that_are_not_true_any_more_are_written_out():
    known = ["a.q", "b.a.q", "b.k", "q"]
    layers = [LayerSetting("a.q", 4, 2.0), LayerSetting("q", 2, 1.5)]
    made = adapter_config({"r": 8, "lora_alpha": 8, "target_modules": ["q"]}, layers, known)
    # The names "a.q" and "q" would both choose "b.a.q" too.
    assert made["target_modules"] == r"a\.q|q"
    assert made["rank_pattern"] == {"a.q": 4, "q": 2}
    assert made["alpha_pattern"] == {"a.q": 8, "q": 3}
    made = adapter_config({"target_modules": ["x"], "use_rslora": True}, [LayerSetting("b.k", 4, 2.0)], known)
    assert made["target_modules"] == ["k"]
    assert (made["r"], made["lora_alpha"], made["rank_pattern"]) == (4, 4, {})


KNOWN = ["layers", "layers.0", "layers.0.q", "layers.0.k", "layers.1.q", "layers.1.k", "head"]


def scales(config, layers):
    """Return rank and scale of each layer by the config's own rules: a pattern matches a path's end."""
    settings = read_settings({**config, "target_modules": None}, "", strict=True)
    return {one.path: (settings.rank(one.path), settings.scaling(one.path).of(one.rank)) for one in layers}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    "layers",
    [
        [LayerSetting("layers.0.q", 4, 2.0), LayerSetting("layers.1.q", 4, 2.0)],
        [LayerSetting("layers.0.q", 4, 2.0), LayerSetting("layers.1.q", 8, 0.5)],
        [
            LayerSetting("layers.0.q", 3, 1 / 3),
            LayerSetting("layers.0.k", 3, 0.1),
            LayerSetting("head", 2, 7.0),
        ],
        [LayerSetting("head", 1, 1.0)],
    ],
)
def test_the_config_gives_every_layer_its_rank_and_scale(layers, rslora):
    made = adapter_config({"use_rslora": rslora}, layers, KNOWN)
    found = scales(made, layers)
    for one in layers:
        assert found[one.path] == (one.rank, pytest.approx(one.scale, rel=1e-12))
    chosen = targets_of(made).among(KNOWN)
    assert set(chosen) == {one.path for one in layers}


def test_the_shortest_targets_that_choose_these_layers_and_no_others():
    def targets(*paths):
        return adapter_config(None, [LayerSetting(path, 2, 1.0) for path in paths], KNOWN)["target_modules"]

    assert targets("layers.0.q", "layers.1.q") == ["q"]
    assert targets("layers.0.q") == ["layers.0.q"]
    given = {"target_modules": ["q", "k"], "layers_to_transform": [0], "exclude_modules": None}
    made = adapter_config(given, [LayerSetting("layers.1.k", 2, 1.0)], KNOWN)
    assert (made["target_modules"], made["layers_to_transform"]) == (["layers.1.k"], None)


def test_what_no_longer_describes_a_plain_pair_is_left_out():
    given = {
        "enable_lora": [True, False],
        "merge_weights": False,
        "init_lora_weights": "pissa",
        "inference_mode": False,
    }
    made = adapter_config(
        given, [LayerSetting("head", 2, 1.0, 0.25)], KNOWN, base_model_name_or_path="org/base"
    )
    assert not {"enable_lora", "merge_weights"} & made.keys()
    assert (made["init_lora_weights"], made["inference_mode"]) == (True, True)
    assert (made["lora_dropout"], made["base_model_name_or_path"]) == (0.25, "org/base")
    assert adapter_config({"init_lora_weights": "gaussian"}, [], KNOWN)["init_lora_weights"] == "gaussian"
