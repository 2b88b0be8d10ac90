"""A class's own `from_pretrained`: what it does around the loading of its weights."""

from __future__ import annotations

import json

import pytest
import torch

import shardload
from shardload.errors import UnsupportedError

from .repos import MODEL, module_of, tiny

HEAD = "    @classmethod\n    def from_pretrained(cls, where, *args, config=None, **kwargs):\n"


def checkpoint(folder, body, left_out=(), model=MODEL):
    tiny(folder, model=f"{model}\n{HEAD}" + "".join(f"        {line}\n" for line in body))
    weights = {"linear.weight": torch.eye(4), "linear.bias": torch.ones(4)}
    torch.save({k: v for k, v in weights.items() if k not in left_out}, folder / "pytorch_model.bin")
    return folder


def load(folder, **options):
    model = shardload.from_pretrained(folder, trust_remote_code=True, **options)
    return model, [
        note for note in shardload.report_of(model).notes if "from_pretrained" in note or "own" in note
    ]


def test_what_it_adds_is_there_and_in_eval_mode(tmp_path):
    body = [
        "assert config is not None and kwargs == {}",
        "model = super().from_pretrained(where, *args, config=config, torch_dtype='auto', **kwargs)",
        "model.memory = nn.Dropout(0.5)",
        "model.seen = (where, model.linear.bias.sum().item(), model.config is config)",
        "return model",
    ]
    model, notes = load(checkpoint(tmp_path, body))
    assert model.memory.training is False
    assert model.seen == (str(tmp_path), 4.0, True)
    assert notes == [
        f"{tmp_path / 'modeling_tiny.py'}:19: the class's own from_pretrained ran around the loading"
    ]


def test_it_is_told_which_keys_were_missing(tmp_path):
    body = [
        "model, info = super().from_pretrained(where, config=config, output_loading_info=True)",
        "model.info = info",
        "return model",
    ]
    model, _ = load(checkpoint(tmp_path, body, left_out=["linear.bias"]), allow_missing=["linear.bias"])
    assert model.info == {
        "missing_keys": ["linear.bias"],
        "unexpected_keys": [],
        "mismatched_keys": [],
        "error_msgs": [],
    }


def test_settings_of_generation_of_its_own_class(tmp_path):
    head = "from transformers.generation.configuration_utils import GenerationConfig\n"
    head += "class Mine(GenerationConfig):\n    steps = 7\n"
    body = [
        "model = super().from_pretrained(where, config=config)",
        "model.generation_config = Mine.from_pretrained(where, cache_dir=None, revision='main', token=None)",
        "return model",
    ]
    folder = checkpoint(tmp_path, body, model=head + MODEL)
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 9}))
    model, _ = load(folder)
    assert (model.generation_config.steps, model.generation_config.max_new_tokens) == (7, 9)


def test_one_that_fails_first_leaves_the_filled_model(tmp_path):
    body = ["open(where + '/lacking.npz')", "return super().from_pretrained(where, config=config)"]
    model, (note,) = load(checkpoint(tmp_path, body))
    assert model.linear.bias.sum() == 4
    assert "failed before it asked for the weights: FileNotFoundError" in note
    assert f"({tmp_path / 'modeling_tiny.py'}:21)" in note


def test_one_that_ends_the_process_does_not(tmp_path):
    _, (note,) = load(
        checkpoint(tmp_path, ["exit(3)", "return super().from_pretrained(where, config=config)"])
    )
    assert "failed before it asked for the weights: SystemExit: 3" in note


def test_one_that_fails_later_says_so(tmp_path):
    body = ["model = super().from_pretrained(where, config=config)", "raise OSError('no file of mine')"]
    with pytest.warns(RuntimeWarning, match="TinyModel: .* failed: OSError: no file of mine") as told:
        model, (note,) = load(checkpoint(tmp_path, body))
    assert told[0].filename == __file__
    assert model.linear.bias.sum() == 4
    assert "failed after the weights were loaded: OSError: no file of mine" in note


def test_a_loader_of_its_own_is_not_run(tmp_path):
    model, (note,) = load(checkpoint(tmp_path, ["raise SystemError('ran')"]))
    assert model.linear.bias.sum() == 4
    assert note.endswith("the class has a loader of its own, which was not run")


def test_one_that_never_asks_is_left_out(tmp_path):
    body = ["if config is None:", "    return super().from_pretrained(where)", "return 3"]
    model, (note,) = load(checkpoint(tmp_path, body))
    assert model.linear.bias.sum() == 4
    assert note.endswith("never asked for the weights; what it made is left out")


def test_outside_of_a_load_and_for_another_class_the_base_refuses(tmp_path):
    body = [
        "model = super().from_pretrained(where, config=config)",
        "try:",
        "    PreTrainedModel.from_pretrained(where)",
        "except Exception as error:",
        "    model.refused = str(error)",
        "return model",
    ]
    model, _ = load(checkpoint(tmp_path, body))
    assert "PreTrainedModel.from_pretrained" in model.refused
    with pytest.raises(UnsupportedError, match="TinyModel.from_pretrained"):
        module_of(model).TinyModel.from_pretrained(str(tmp_path))


def test_a_class_without_one_says_nothing(tmp_path):
    tiny(tmp_path)
    torch.save({"linear.weight": torch.eye(4), "linear.bias": torch.ones(4)}, tmp_path / "pytorch_model.bin")
    assert load(tmp_path)[1] == []


def test_with_the_real_transformers_it_is_not_run(tmp_path):
    pytest.importorskip("transformers")
    model, (note,) = load(checkpoint(tmp_path, ["raise SystemError('ran')"]), remote_base="transformers")
    assert model.linear.bias.sum() == 4
    assert note.endswith("was not run: it would ask transformers' loader")
