"""inspect_adapter and `shardload inspect`: what headers say of an adapter, and how it fits a base."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from shardload import inspect_adapter
from shardload.cli import commands
from shardload.errors import UnsupportedError
from tests.adapters.tiny import PREFIX, Tiny, config, lora_tensors, write
from tests.tiny import write_checkpoint


@pytest.fixture
def adapter(tmp_path):
    tensors = lora_tensors(Tiny()) | {
        f"{PREFIX}score.weight": torch.ones(3, 8),
        f"{PREFIX}score.bias": torch.ones(3),
    }
    settings = config(
        modules_to_save=["score"], rank_pattern={"down": 2}, alpha_pattern={"down": 4}, use_rslora=True
    )
    return write(tmp_path / "adapter", tensors, settings | {"base_model_name_or_path": "org/base"})


def test_headers_alone(adapter):
    found = inspect_adapter(adapter)
    assert (found.format, found.base, found.layers) == ("PEFT LoRA, safetensors", "org/base", 6)
    assert found.ranks == {2: 6}
    assert found.scales == {6 / 2**0.5: 4, 4 / 2**0.5: 2}
    assert found.variants == ("rsLoRA", "modules_to_save")
    assert set(found.replaced) == {"score.weight", "score.bias"}
    assert found.parameters == 2 * 2 * (8 + 8 + 8 + 12 + 12 + 8) + 27
    assert (found.coverage, found.faults, found.warnings) == (None, (), ())
    assert {"scale": 4 / 2**0.5, "layers": 2} in json.loads(json.dumps(found.to_dict()))["scales"]


@pytest.mark.parametrize("of", ["model", "meta", "checkpoint"])
def test_coverage_of_a_base(adapter, tmp_path, of):
    model = Tiny()
    base = model.to("meta") if of == "meta" else model
    if of == "checkpoint":
        write_checkpoint(tmp_path / "base", model.state_dict())
        base = tmp_path / "base"
    found = inspect_adapter(adapter, base)
    covered = 2 * (8 * 8 + 8 * 12 + 12 * 8) + 27
    assert (found.coverage.fitting, found.coverage.layers) == (6, 6)
    assert found.coverage.kinds == {"Linear": 6}
    assert found.coverage.share == pytest.approx(covered / sum(p.numel() for p in Tiny().parameters()))
    assert found.faults == ()


def test_another_base(adapter):
    other = Tiny()
    del other.layers[1]
    found = inspect_adapter(adapter, other)
    assert found.coverage.fitting == 3
    assert {fault.kind for fault in found.faults} == {"unexpected"}
    assert len(found.faults) == 6


def test_a_file_that_does_not_hold_alpha(tmp_path):
    path = tmp_path / "lora.pt"
    torch.save({"layers.0.q.lora_A": torch.ones(2, 8), "layers.0.q.lora_B": torch.ones(8, 2)}, path)
    found = inspect_adapter(path)
    assert (found.format.partition(",")[0], found.ranks, found.scales) == ("loralib", {2: 1}, {})
    assert "pass alpha=" in found.warnings[0]
    assert inspect_adapter(path, alpha=8).scales == {4.0: 1}


def test_what_is_declined_is_declined_here_too(tmp_path):
    with pytest.raises(UnsupportedError, match="KaSA"):
        inspect_adapter(write(tmp_path, lora_tensors(Tiny()), config(kasa_config={})))


def test_the_command(adapter, tmp_path):
    write_checkpoint(tmp_path / "base", Tiny().state_dict())
    shown = CliRunner().invoke(commands, ["inspect", str(adapter), "--base", str(tmp_path / "base")])
    assert shown.exit_code == 0, shown.output
    assert "fits      6 of 6 layers" in shown.output
    data = json.loads(CliRunner().invoke(commands, ["inspect", str(adapter), "--json"]).stdout)
    assert data["layers"] == 6
    broken = lora_tensors(Tiny())
    del broken[f"{PREFIX}layers.1.q.lora_A.weight"]
    faulty = CliRunner().invoke(commands, ["inspect", str(write(tmp_path / "broken", broken))])
    assert faulty.exit_code == 1
    assert "layers.1.q.lora_A.weight: the tensor is missing" in faulty.output
    weights = CliRunner().invoke(commands, ["inspect", str(tmp_path / "base")])
    assert "layers" in weights.output
    assert "adapts" not in weights.output
