"""Every tensor of every format and kind of layer is consumed exactly once: one wrong tensor is always an error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload.adapters import load_adapter
from shardload.errors import (
    CorruptError,
    MismatchError,
    ShardloadError,
    UnsupportedError,
    UsageError,
)
from tests.adapters.models import Experts, Scaled, Transposed
from tests.adapters.tiny import (
    PREFIX,
    Tiny,
    assert_unchanged,
    config,
    lora_tensors,
    snapshot,
    write,
)

WIDTH, OUT, ROWS, RANK = 8, 12, 11, 2


class Every(nn.Module):
    """A layer of each kind, none of them square."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.embed = Scaled(ROWS, WIDTH)
            self.linear = nn.Linear(WIDTH, OUT)
            self.fused = nn.Linear(WIDTH, 3 * WIDTH)
            self.turned = Transposed(OUT, WIDTH)
            self.conv = nn.Conv1d(WIDTH, OUT, 3)
            self.attention = nn.MultiheadAttention(WIDTH, 2)
            self.experts = Experts()
            self.tokens = nn.Embedding(ROWS, WIDTH)
            self.head = nn.Linear(WIDTH, 3)


def ones(*shape):
    return torch.linspace(0.5, 1.5, int(torch.tensor(shape).prod())).view(shape)


def peft_dora():
    tensors = {
        "linear.lora_A.weight": ones(RANK, WIDTH),
        "linear.lora_B.weight": ones(OUT, RANK),
        "linear.lora_magnitude_vector": ones(OUT),
        "turned.lora_A.weight": ones(RANK, WIDTH),
        "turned.lora_B.weight": ones(OUT, RANK),
        "turned.lora_magnitude_vector": ones(OUT),
        "conv.lora_A.weight": ones(RANK, WIDTH, 3),
        "conv.lora_B.weight": ones(OUT, RANK, 1),
        "conv.lora_magnitude_vector": ones(1, OUT, 1),
        "embed.lora_embedding_A": ones(RANK, ROWS),
        "embed.lora_embedding_B": ones(WIDTH, RANK),
        "embed.lora_magnitude_vector": ones(WIDTH),
    }
    return {PREFIX + key: value for key, value in tensors.items()}, config(use_dora=True)


def peft_all():
    tensors = {
        "linear.lora_A.weight": ones(RANK, WIDTH),
        "linear.lora_B.weight": ones(OUT, RANK),
        "attention.lora_A.weight": ones(RANK, WIDTH),
        "attention.lora_B.weight": ones(3 * WIDTH, RANK),
        "attention.base_layer.out_proj.lora_A.weight": ones(RANK, WIDTH),
        "attention.base_layer.out_proj.lora_B.weight": ones(WIDTH, RANK),
        "experts.base_layer.lora_A.weight": ones(3 * RANK, WIDTH),
        "experts.base_layer.lora_B.weight": ones(12, RANK * 3),
        "experts.lora_A.weight": ones(3 * RANK, 6),
        "experts.lora_B.weight": ones(WIDTH, RANK * 3),
        "tokens.token_adapter.trainable_tokens_delta": ones(3, WIDTH),
        "head.weight": ones(3, WIDTH),
        "head.bias": ones(3),
    }
    settings = config(
        target_parameters=["experts.up_proj", "experts.down_proj"],
        trainable_token_indices={"tokens": [1, 4, 7]},
        modules_to_save=["head"],
        peft_version="0.21.2",
    )
    return {PREFIX + key: value for key, value in tensors.items()}, settings


def peft_02():
    tensors = {"fused.lora_A.weight": ones(2 * RANK, WIDTH), "fused.lora_B.weight": ones(2 * WIDTH, RANK, 1)}
    settings = config(enable_lora=[True, False, True], merge_weights=False)
    return {PREFIX + key: value for key, value in tensors.items()}, settings


def loralib():
    tensors = {
        "linear.lora_A": ones(RANK, WIDTH),
        "linear.lora_B": ones(OUT, RANK),
        "linear.bias": ones(OUT),
        "embed.lora_A": ones(RANK, ROWS),
        "embed.lora_B": ones(WIDTH, RANK),
    }
    return tensors, False


def minimind():
    return {"linear.lora.A.weight": ones(RANK, WIDTH), "linear.lora.B.weight": ones(OUT, RANK)}, False


def mlx():
    tensors = {
        "linear.lora_a": ones(WIDTH, RANK),
        "linear.lora_b": ones(RANK, OUT),
        "linear.m": ones(OUT),
    }
    return tensors, {
        "fine_tune_type": "dora",
        "lora_parameters": {"rank": RANK, "scale": 2.0, "dropout": 0.0},
    }


def torchtune():
    tensors = {
        "linear.lora_a.weight": ones(RANK, WIDTH),
        "linear.lora_b.weight": ones(OUT, RANK),
        "fused.lora_a.weight": ones(RANK, WIDTH),
        "fused.lora_b.weight": ones(3 * WIDTH, RANK),
    }
    return tensors, False


FILES = {made.__name__: made for made in (peft_dora, peft_all, peft_02, loralib, minimind, mlx, torchtune)}
OPTIONS = {"loralib": {"alpha": 6}, "torchtune": {"alpha": 6}}


def drop(tensors, key):
    del tensors[key]


def rename_module(tensors, key):
    head, _, tail = key.rpartition(next(name for name in MODULES if name in key))
    tensors[f"{head}others{tail}"] = tensors.pop(key)


def rename_end(tensors, key):
    tensors[key + "s"] = tensors.pop(key)


def double(tensors, key):
    at = len(PREFIX) if key.startswith(PREFIX) else 0
    tensors[f"{key[:at]}_orig_mod.{key[at:]}"] = tensors[key].clone()


def transpose(tensors, key):
    value = tensors[key]
    turned = value.flip(0) if value.dim() == 1 else value.mT
    tensors[key] = value[None] if turned.shape == value.shape else turned.contiguous()


def put_nan(tensors, key):
    tensors[key].view(-1)[-1] = float("nan")


def empty(tensors, key):
    tensors[key] = torch.empty(0)


MODULES = ("linear", "fused", "turned", "conv", "attention", "experts", "embed", "tokens", "head")
MUTATIONS = [drop, rename_module, rename_end, double, transpose, put_nan, empty]


@pytest.mark.parametrize("name", FILES)
def test_the_file_itself_loads_whole(tmp_path, name):
    tensors, settings = FILES[name]()
    report = load_adapter(Every(), write(tmp_path / "it", tensors, settings), **OPTIONS.get(name, {}))
    assert sorted(row.key for row in report.rows) == sorted(tensors)
    assert {row.shape for row in report.rows} == {tuple(value.shape) for value in tensors.values()}
    assert report.warnings == ()


@pytest.mark.parametrize("mutate", MUTATIONS)
@pytest.mark.parametrize("name", FILES)
def test_one_wrong_tensor(tmp_path, name, mutate):
    for number, key in enumerate(FILES[name]()[0]):
        if name == "loralib" and key == "linear.bias" and mutate is drop:
            continue  # the file does not say whether biases were trained
        if name == "torchtune" and mutate is drop and "magnitude" in key:
            continue
        tensors, settings = FILES[name]()
        keys = set(tensors)
        mutate(tensors, key)
        model = Every()
        before = snapshot(model)
        with pytest.raises(ShardloadError) as raised:
            load_adapter(model, write(tmp_path / str(number), tensors, settings), **OPTIONS.get(name, {}))
        message = str(raised.value)
        assert isinstance(raised.value, (MismatchError, CorruptError, UnsupportedError)), (key, message)
        wrong = (set(tensors) - keys) or {key, key.removeprefix(PREFIX), *_spelled(key)}
        assert any(each in message for each in wrong), (key, message)
        assert "nearest module: " in message, (key, message)
        assert_unchanged(model, before)


def _spelled(key):
    """What a missing key may be called: by the model's names, or without the parts that only PEFT adds."""
    bare = key.removeprefix(PREFIX)
    yield bare.replace(".base_layer", "")
    yield bare.replace("lora.A.weight", "A").replace("lora.B.weight", "B")


def test_a_format_that_is_not_the_file_s(tmp_path):
    folder = write(tmp_path, lora_tensors(Tiny()))
    assert load_adapter(Tiny(), folder, format="peft").modules == 6
    with pytest.raises(UsageError, match="not in the format loralib: its keys are those of PEFT LoRA"):
        load_adapter(Tiny(), folder, format="loralib")
    with pytest.raises(UsageError, match="is none of auto, peft"):
        load_adapter(Tiny(), folder, format="gguf")
