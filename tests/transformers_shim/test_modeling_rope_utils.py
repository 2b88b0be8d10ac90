"""Inverse frequencies of rotary embeddings, compared with transformers 5 where it is installed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from shardload.transformers_shim.configuration_utils import PretrainedConfig
from shardload.transformers_shim.modeling_rope_utils import (
    ROPE_INIT_FUNCTIONS,
    dynamic_rope_update,
    rope_config_validation,
)

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64, "rope_theta": 10000.0}
KINDS = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "yarn with scales": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 16,
        "beta_slow": 2,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    },
    "longrope": {
        "short_factor": [1.0 + n / 10 for n in range(8)],
        "long_factor": [2.0 + n for n in range(8)],
        "original_max_position_embeddings": 16,
        "factor": 4.0,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


def settings(kind):
    return {"rope_type": kind, **KINDS[kind]}


def test_plain_frequencies():
    frequencies, scale = ROPE_INIT_FUNCTIONS["default"](PretrainedConfig(**SIZES), torch.device("cpu"))
    expected = torch.tensor([10000.0 ** -(n / 16) for n in range(0, 16, 2)])
    torch.testing.assert_close(frequencies, expected)
    assert scale == 1.0
    part = PretrainedConfig(**SIZES, partial_rotary_factor=0.5)
    assert ROPE_INIT_FUNCTIONS["default"](part)[0].shape == (4,)
    first = ROPE_INIT_FUNCTIONS["default"](None, None, dim=16, base=10000.0)[0]
    assert torch.equal(first, frequencies)


def test_scaled_frequencies():
    plain = ROPE_INIT_FUNCTIONS["default"](PretrainedConfig(**SIZES))[0]
    linear = PretrainedConfig(**SIZES, rope_scaling=settings("linear"))
    assert torch.equal(ROPE_INIT_FUNCTIONS["linear"](linear)[0], plain / 2)
    dynamic = PretrainedConfig(**SIZES, rope_scaling=settings("dynamic"))
    assert torch.equal(ROPE_INIT_FUNCTIONS["dynamic"](dynamic, seq_len=10)[0], plain)
    grown = ROPE_INIT_FUNCTIONS["dynamic"](dynamic, seq_len=128)[0]
    torch.testing.assert_close(
        grown[-1], plain[-1] / 5
    )  # the slowest turns as if positions were 5 times closer
    long = PretrainedConfig(**SIZES, rope_scaling=settings("longrope"))
    near, scale = ROPE_INIT_FUNCTIONS["longrope"](long, seq_len=16)
    far, _ = ROPE_INIT_FUNCTIONS["longrope"](long, seq_len=17)
    torch.testing.assert_close(near, plain / torch.tensor(KINDS["longrope"]["short_factor"]))
    torch.testing.assert_close(far, plain / torch.tensor(KINDS["longrope"]["long_factor"]))
    assert scale == pytest.approx(1.5**0.5)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("seq_len", [None, 10, 100])
def test_frequencies_are_those_of_transformers(kind, seq_len):
    transformers = pytest.importorskip("transformers")
    rope = pytest.importorskip("transformers.modeling_rope_utils")
    given = settings(kind)
    name = given["rope_type"]

    theirs = transformers.LlamaConfig(**SIZES, rope_parameters={**given, "rope_theta": 10000.0})
    expected = rope.ROPE_INIT_FUNCTIONS[name](theirs, torch.device("cpu"), seq_len=seq_len)
    ours = PretrainedConfig(**SIZES, rope_scaling=given)
    got = ROPE_INIT_FUNCTIONS[name](ours, torch.device("cpu"), seq_len=seq_len)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=0)
    assert got[1] == pytest.approx(float(expected[1]))


class Rotary(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.config = PretrainedConfig(**SIZES, rope_scaling=settings(kind))
        self.rope_type = kind
        self.max_seq_len_cached = self.original_max_seq_len = 64
        frequencies, self.attention_scaling = ROPE_INIT_FUNCTIONS[kind](self.config)
        self.register_buffer("inv_freq", frequencies, persistent=False)
        self.original_inv_freq = self.inv_freq

    @dynamic_rope_update
    def forward(self, x, position_ids):
        return self.inv_freq.clone()


def test_frequencies_follow_the_length_and_come_back():
    rotary, x = Rotary("dynamic"), torch.zeros(1)
    plain = rotary(x, torch.arange(10)[None])
    grown = rotary(x, torch.arange(100)[None])
    assert torch.equal(grown, ROPE_INIT_FUNCTIONS["dynamic"](rotary.config, seq_len=100)[0])
    assert torch.equal(rotary(x, torch.arange(80)[None]), grown)
    assert torch.equal(rotary(x, torch.arange(10)[None]), plain)
    rotary = Rotary("longrope")
    short = rotary(x, torch.arange(10)[None])
    assert not torch.equal(rotary(x, torch.arange(20)[None]), short)
    assert torch.equal(rotary(x, torch.arange(10)[None]), short)


def test_rope_scaling_must_name_its_kind():
    rope_config_validation(SimpleNamespace(rope_scaling=None))
    rope_config_validation(SimpleNamespace(rope_scaling={"type": "linear"}))
    with pytest.raises(KeyError):
        rope_config_validation(SimpleNamespace(rope_scaling={"factor": 2}))
