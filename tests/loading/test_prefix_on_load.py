"""A prefix of P-Tuning v2 comes on its base: what the trainer's own lines load is what is loaded."""

from __future__ import annotations

import json

import pytest
import torch

from shardload import MismatchError, UnsupportedError, UsageError, from_pretrained, load_adapter, report_of
from shardload.cli import run
from shardload.loading.prefix_on_load import PrefixOnLoad
from shardload.where import Where
from tests.tiny import write_checkpoint

CODE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class PrefixConfig(PretrainedConfig):
    model_type = "prefixed"

    def __init__(self, width=4, layers=2, pre_seq_len=None, prefix_projection=False, **more):
        self.width, self.layers = width, layers
        self.pre_seq_len, self.prefix_projection = pre_seq_len, prefix_projection
        super().__init__(**more)


class PrefixEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        columns = 2 * config.layers * config.width
        if config.prefix_projection:
            self.embedding = nn.Embedding(config.pre_seq_len, config.width)
            self.trans = nn.Sequential(
                nn.Linear(config.width, config.width), nn.Tanh(), nn.Linear(config.width, columns)
            )
        else:
            self.embedding = nn.Embedding(config.pre_seq_len, columns)


class Body(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = nn.Embedding(9, config.width)
        self.layers = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.layers))
        if config.pre_seq_len is not None:
            self.prefix_tokens = torch.arange(config.pre_seq_len).long()
            self.prefix_encoder = PrefixEncoder(config)


class PrefixModel(PreTrainedModel):
    config_class = PrefixConfig

    def __init__(self, config):
        super().__init__(config)
        self.transformer = Body(config)
"""
CONFIG = {
    "model_type": "prefixed",
    "auto_map": {"AutoConfig": "modeling.PrefixConfig", "AutoModel": "modeling.PrefixModel"},
}
TRUST = {"trust_remote_code": True, "progress": False}
HOME = "transformer.prefix_encoder"
BASE = {
    "transformer.embedding.weight": (9, 4),
    **{
        f"transformer.layers.{n}.{leaf}": shape
        for n in (0, 1)
        for leaf, shape in (("weight", (4, 4)), ("bias", (4,)))
    },
}
PREFIXES = {
    "plain": {"embedding.weight": (5, 16)},
    "projected": {
        "embedding.weight": (5, 4), "trans.0.weight": (4, 4), "trans.0.bias": (4,),
        "trans.2.weight": (16, 4), "trans.2.bias": (16,),
    },
}  # fmt: skip


def numbers(shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(len(shapes))
    return {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in shapes.items()}


@pytest.fixture(params=PREFIXES)
def trained(request, tmp_path):
    """A base in half precision, a prefix that was trained on it in float32, and what the model should hold."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "modeling.py").write_text(CODE)
    (base / "config.json").write_text(json.dumps(CONFIG))
    state = numbers(BASE, torch.float16)
    write_checkpoint(base, state, config=CONFIG)
    stored = {f"{HOME}.{key}": value for key, value in numbers(PREFIXES[request.param]).items()}
    (tmp_path / "prefix").mkdir()
    torch.save(stored, tmp_path / "prefix" / "pytorch_model.bin")
    return base, tmp_path / "prefix", {**state, **stored}


def assert_loaded(model, truth):
    held = model.state_dict()
    assert held.keys() == truth.keys()
    for key, value in truth.items():
        assert torch.equal(held[key], value.to(held[key].dtype)), key


def test_the_base_gets_its_prefix_and_its_settings(trained):
    base, prefix, truth = trained
    model = from_pretrained(base, prefix=prefix, **TRUST)
    assert_loaded(model, truth)
    assert model.config.pre_seq_len == 5
    assert model.transformer.prefix_tokens.tolist() == [0, 1, 2, 3, 4]
    assert model.state_dict()[f"{HOME}.embedding.weight"].dtype == torch.float32  # as it was trained
    report = report_of(model)
    assert not report.allowed
    assert report.loaded == len(truth)
    assert any(note.startswith(f"{HOME} is a prefix of 5 tokens") for note in report.notes)
    assert from_pretrained(base, prefix=prefix, dtype="bfloat16", **TRUST).dtype == torch.bfloat16


def test_the_cure_of_the_file_as_an_adapter_loads_it(trained, capsys):
    base, prefix, truth = trained
    plain = from_pretrained(base, **TRUST)
    with pytest.raises(UnsupportedError) as caught:
        load_adapter(plain, prefix)
    assert_loaded(from_pretrained(base, **TRUST, **caught.value.cure.keywords), truth)
    asked = ["load", str(base), "--trust-remote-code"]
    assert run([*asked, "--adapter", str(prefix)]) == 2
    option = capsys.readouterr().err.rpartition("with --prefix ")[2].strip()
    assert run([*asked, "--prefix", option]) == 0
    assert "a prefix of 5 tokens" in capsys.readouterr().out


def test_a_config_of_the_caller_is_copied(trained):
    from shardload import load_config

    base, prefix, truth = trained
    config = load_config(base, trust_remote_code=True)
    assert_loaded(from_pretrained(base, prefix=prefix, config=config, **TRUST), truth)
    assert config.pre_seq_len is None


def test_the_settings_are_read_from_headers(trained):
    _, prefix, truth = trained
    projected = f"{HOME}.trans.0.weight" in truth
    assert PrefixOnLoad(Where(prefix)).settings == {"pre_seq_len": 5, "prefix_projection": projected}


def test_what_is_no_prefix_or_does_not_fit_is_said_before_the_base_is_read(trained, tmp_path):
    base, prefix, _ = trained

    def refused(tensors, kind):
        torch.save(tensors, tmp_path / "other.bin")
        with pytest.raises(kind) as caught:
            from_pretrained(base, prefix=tmp_path / "other.bin", **TRUST)
        return str(caught.value)

    assert "no prefix of P-Tuning v2" in refused({"a.lora_A.weight": torch.ones(2, 2)}, UsageError)
    table = {f"{HOME}.embedding.weight": torch.ones(5, 16)}
    assert "1 tensors beside the prefix" in refused({**table, "head.weight": torch.ones(2)}, UsageError)
    assert "embedding.weight" in refused({f"{HOME}.embedding.weight": torch.ones(5, 7)}, MismatchError)
    with pytest.raises(UsageError, match="has 0 modules prefix_encoder"):
        from_pretrained(base, prefix=prefix, model_class=lambda _: torch.nn.Embedding(9, 4), progress=False)
