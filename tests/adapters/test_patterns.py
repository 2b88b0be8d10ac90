"""rank_pattern and alpha_pattern, matched as PEFT matches them, and in bounded time."""

from __future__ import annotations

import pytest

from shardload.adapters import load_adapter
from shardload.adapters.patterns import Patterns
from shardload.errors import UnsupportedError
from tests.adapters.tiny import (
    TOKENS,
    Tiny,
    by_hand,
    config,
    error,
    lora_tensors,
    write,
)
from tests.calls import calls_of, has_an_end


def test_rank_and_alpha_patterns(tmp_path):
    model = Tiny()
    tensors = lora_tensors(model, names=("q",)) | lora_tensors(model, names=("up",), rank=3)
    settings = config(
        rank_pattern={"up": 3},
        alpha_pattern={"layers.1.q": 10, r"layers\.\d+\.q": 4, "q": 99},
    )
    scales = {"layers.0.q": 4 / 2, "layers.1.q": 10 / 2, "layers.0.up": 6 / 3, "layers.1.up": 6 / 3}
    report = load_adapter(model, write(tmp_path, tensors, settings))
    assert error(model(TOKENS), by_hand(Tiny(), tensors, scales.__getitem__)) <= 1e-5
    assert report.ranks == {2: 2, 3: 2}
    assert report.warnings == ("rank or alpha patterns that match no layer: q",)


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
    found = []
    assert calls_of(lambda: found.extend(patterns.key_for(path) for path in paths)) < 40 * len(paths)
    assert found == paths


@pytest.mark.parametrize("pattern", ["(a*)*$", "(.*)+x", "(a)" * 2000, ".*.*.*.*x", "a?" * 30 + "a" * 30])
def test_patterns_that_run_for_ages_are_refused(tmp_path, pattern):
    with has_an_end(), pytest.raises(UnsupportedError, match="alpha_pattern"):
        load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), config(alpha_pattern={pattern: 4})))
