"""`shardload merge`: what it prints, as text and as JSON, and its exit codes."""

from __future__ import annotations

import json

import torch

from shardload import open_checkpoint
from tests.adapters import tiny
from tests.adapters.tiny import Tiny
from tests.tiny import write_checkpoint


def files(folder, factor=1.0):
    write_checkpoint(folder / "base", Tiny(torch.bfloat16).state_dict(), config={"model_type": "tiny"})
    tensors = tiny.lora_tensors(Tiny(), names=("up", "down"))
    tensors = {k: v * factor if "lora_B" in k else v for k, v in tensors.items()}
    return folder / "base", tiny.write(folder / "lora", tensors)


def test_merge(tmp_path, call_cli):
    base, adapter = files(tmp_path)
    done = call_cli("merge", base, adapter, "-o", tmp_path / "out")
    assert done.returncode == 0
    assert "merged " in done.stdout
    assert "4 tensors" in done.stdout
    assert "layers.{0-1}.down.weight" in done.stdout
    assert "read back and compared" in done.stdout
    assert open_checkpoint(tmp_path / "out").config == {"model_type": "tiny"}


def test_a_warning_names_the_cures(tmp_path, call_cli):
    base, adapter = files(tmp_path, 3e-4)
    done = call_cli("merge", base, adapter, "-o", tmp_path / "out")
    assert done.returncode == 0
    assert "survived the rounding to bfloat16" in done.stdout
    assert "stochastic" in done.stdout


def test_json(tmp_path, call_cli):
    base, adapter = files(tmp_path)
    done = call_cli(
        "merge", base, f"{adapter}=0.5", "-o", tmp_path / "out", "--rounding", "stochastic", "--json"
    )
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document["rounding"] == "stochastic"
    assert len(document["tensors"]) == 4
    assert document["written"]["verified"] is True
    assert document["room"]["needed"] > 0
    assert document["least_share"] == min(row["share"] for row in document["tensors"])


def test_exit_codes(tmp_path, call_cli):
    base, adapter = files(tmp_path)
    assert call_cli("merge", base, adapter).returncode == 2
    assert call_cli("merge", base, adapter, "-o", base).returncode == 2
    assert call_cli("merge", base, f"{adapter}=much", "-o", tmp_path / "out").returncode == 2
    assert call_cli("merge", base, tmp_path / "nowhere", "-o", tmp_path / "out").returncode == 2
    other = tiny.write(
        tmp_path / "other", {f"{tiny.PREFIX}x.lora_{p}.weight": torch.ones(2, 2) for p in "AB"}
    )
    assert call_cli("merge", base, other, "-o", tmp_path / "out").returncode == 1
    large = tiny.write(
        tmp_path / "large", {k: v * 1e38 for k, v in tiny.lora_tensors(Tiny(), names=("up",)).items()}
    )
    assert call_cli("merge", base, large, "-o", tmp_path / "out").returncode == 4
    assert not (tmp_path / "out").exists()


def test_the_scale_of_an_adapter_without_a_config_is_given(tmp_path, call_cli):
    base, adapter = files(tmp_path)
    (adapter / "adapter_config.json").unlink()
    done = call_cli("merge", base, adapter, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "or pass --alpha ALPHA" in done.stderr
    assert call_cli("merge", base, adapter, "-o", tmp_path / "out", "--alpha", "6").returncode == 0
