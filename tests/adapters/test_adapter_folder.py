"""An adapter written as PEFT writes it: it comes back, it knows its base, it is whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

import shardload
from shardload import (
    UnsupportedError,
    UsageError,
    attach_lora,
    load_adapter,
    open_checkpoint,
    set_adapter,
)
from shardload.adapters.adapter_folder import save_adapter
from tests.adapters.tiny import PREFIX, TOKENS, Tiny

SETTINGS = {
    "plain": {"targets": ["q", "up"]},
    "all": {"targets": "all-linear", "bias": "all", "modules_to_save": ["norm"]},
    "head": {"targets": ["down"], "modules_to_save": ["score"], "bias": "lora_only", "dropout": 0.1},
    "embedding": {"targets": ["embed"], "use_rslora": True},
    "patterns": {"targets": r".*\.(q|up)", "rank_pattern": {"up": 3}, "alpha_pattern": {r"layers\.1\.q": 3}},
    "lora_bias": {"targets": ["up"], "lora_bias": True, "exclude": ["layers.0.up"]},
}


def randomised(model):
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=random))
    return model


def content(folder):
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return {key: (value.dtype, value.tolist()) for key, value in tensors.items()}, file.metadata()


@pytest.mark.parametrize("case", SETTINGS)
def test_there_and_back(tmp_path, case):
    model = Tiny()
    attach_lora(model, 2, 5, **SETTINGS[case])
    wanted = randomised(model)(TOKENS)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    paths = save_adapter(model, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["adapter_model.safetensors", "adapter_config.json"]
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    other = Tiny()
    report = load_adapter(other, tmp_path / "new" / "folder")
    assert torch.equal(other(TOKENS), wanted)
    assert report.warnings == ()
    stored = json.loads(paths[1].read_text())
    assert stored["target_modules"] == SETTINGS[case]["targets"] or case == "all"
    save_adapter(other, tmp_path / "again")
    assert content(tmp_path / "again") == content(tmp_path / "new" / "folder")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text()) == stored


def test_the_active_one_is_not_the_saved_one(tmp_path):
    model = Tiny()
    attach_lora(model, 2, 5, ["q"], modules_to_save=["score"])
    first = randomised(model)(TOKENS)
    attach_lora(model, 3, 5, ["q", "up"], name="second")
    set_adapter(model, "second")
    save_adapter(model, tmp_path)
    other = Tiny()
    load_adapter(other, tmp_path)
    assert torch.equal(other(TOKENS), first)
    with pytest.raises(
        UsageError, match="no adapter called 'third' is attached\n  where: attached: default, second"
    ):
        save_adapter(model, tmp_path, "third")


def test_what_can_not_be_saved(tmp_path):
    model = Tiny()
    attach_lora(model, 2, 5, ["q", "up"])
    with torch.no_grad():
        model.layers[0].q.lora_A["default"].weight[0, 0] = float("nan")
    with pytest.raises(UsageError, match=r"layers.0.q.lora_A.weight holds NaN or Inf"):
        save_adapter(model, tmp_path / "x")
    with pytest.raises(UsageError, match="no adapter is attached"):
        save_adapter(Tiny(), tmp_path / "x")
    (tmp_path / "file").write_text("")
    model.layers[0].q.lora_A["default"].weight.data.zero_()
    with pytest.raises(UsageError, match="is a file"):
        save_adapter(model, tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]
    with torch.device("meta"):
        shell = Tiny()
    attach_lora(shell, 2, 5, ["q"])
    shell.to_empty(device="meta")
    with pytest.raises(UsageError, match="is on meta"):
        save_adapter(shell, tmp_path / "x")


def test_an_attention_and_a_convolution(tmp_path):
    def make():
        torch.manual_seed(0)
        return nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2), "conv": nn.Conv1d(4, 6, 3)})

    model = make()
    attach_lora(model, 2, 5, ["attn", "conv"], init=False)
    save_adapter(model, tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert f"{PREFIX}attn.base_layer.out_proj.lora_A.weight" in set(file.keys())
    other = make()
    load_adapter(other, tmp_path)
    x, y = torch.randn(3, 1, 8), torch.randn(1, 4, 9)
    assert torch.equal(other.attn(x, x, x)[0], model.attn(x, x, x)[0])
    assert torch.equal(other.conv(y), model.conv(y))
    assert UnsupportedError is shardload.UnsupportedError


def test_killed_between_the_moves_there_is_no_mixture(tmp_path, monkeypatch):
    """A process that dies at any of its renames leaves the old adapter, the new one, or no weights."""
    old, new = Tiny(), Tiny()
    attach_lora(old, 2, 8, ["q"], init=False)
    attach_lora(new, 5, 8, ["q"], init=False)
    replace, seen = Path.replace, []
    for last in range(5):
        folder, renames = tmp_path / str(last), []

        def dying(self, target, last=last, renames=renames):
            if len(renames) == last:
                os._exit(9)
            renames.append(target)
            return replace(self, target)

        save_adapter(old, folder)
        child = os.fork()
        if not child:
            monkeypatch.setattr(Path, "replace", dying)
            try:
                save_adapter(new, folder)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == (0 if last == 4 else 9)
        try:
            seen.append(next(iter(load_adapter(Tiny(), folder).ranks)))
        except shardload.NotFoundError:
            seen.append(None)
    assert seen == [2, None, None, None, 5]


def test_progress_and_verify(tmp_path):
    model = Tiny()
    attach_lora(model, 2, 5, ["q", "up"])
    seen = []
    save_adapter(model, tmp_path, progress=seen.append, verify=True)
    tensors = open_checkpoint(tmp_path).tensors
    assert seen[-1].done_bytes == seen[-1].total_bytes == sum(ref.nbytes for ref in tensors.values())
    save_adapter(model, tmp_path)
    assert len(seen) == len(tensors)


def test_it_may_lie_beside_the_base(tmp_path):
    """PEFT's files beside a model's: each is found by its own name, and neither save refuses the other's folder."""
    model = Tiny()
    shardload.save(model, tmp_path)
    attach_lora(model, 2, 5, ["q"])
    wanted = randomised(model)(TOKENS)
    save_adapter(model, tmp_path)
    other = Tiny()
    load_adapter(other, tmp_path)
    assert torch.equal(other(TOKENS), wanted)
    assert set(open_checkpoint(tmp_path).tensors) == set(Tiny().state_dict())


def test_an_adapter_of_the_same_settings_is_replaced_by_one_rename(tmp_path):
    model = Tiny()
    attach_lora(model, 2, 5, ["q"])
    save_adapter(model, tmp_path)
    settings = (tmp_path / "adapter_config.json").stat().st_mtime_ns
    wanted = randomised(model)(TOKENS)
    save_adapter(model, tmp_path)
    assert (tmp_path / "adapter_config.json").stat().st_mtime_ns == settings
    other = Tiny()
    load_adapter(other, tmp_path)
    assert torch.equal(other(TOKENS), wanted)
