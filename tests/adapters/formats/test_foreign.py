"""Files of other tools and methods are declined by name."""

from __future__ import annotations

import pytest
import torch

from shardload.adapters import load_adapter
from shardload.errors import UnsupportedError
from tests.adapters.tiny import Tiny, assert_unchanged, config, snapshot, write

STYLES = {
    "kohya": ["lora_unet_down_blocks_0.lora_down.weight", "lora_unet_down_blocks_0.alpha"],
    "diffusers": ["unet.down.attn.to_q.lora.down.weight", "unet.down.attn.to_q.lora.up.weight"],
    "AdaLoRA": ["base_model.model.layers.0.q.lora_E"],
    "another PEFT method": ["base_model.model.layers.0.q.ia3_l"],
}


@pytest.mark.parametrize("tool", STYLES)
@pytest.mark.parametrize("settings", [False, None])
def test_other_tools_files_are_declined_by_name(tmp_path, tool, settings):
    model = Tiny()
    before = snapshot(model)
    folder = write(tmp_path, {key: torch.ones(2, 2) for key in STYLES[tool]}, settings)
    with pytest.raises(UnsupportedError, match=tool):
        load_adapter(model, folder)
    assert_unchanged(model, before)


def test_a_whole_checkpoint_is_no_adapter(tmp_path):
    with pytest.raises(UnsupportedError, match="from_pretrained"):
        load_adapter(Tiny(), write(tmp_path, Tiny().state_dict(), {"model_type": "tiny"}))


def test_a_peft_adapter_without_lora_layers_is_judged_by_its_config(tmp_path):
    tensors = {
        "base_model.model.score.weight": torch.ones(3, 8),
        "base_model.model.score.bias": torch.ones(3),
    }
    report = load_adapter(Tiny(), write(tmp_path, tensors, config(modules_to_save=["score"])))
    assert (report.modules, len(report.rows)) == (0, 2)
