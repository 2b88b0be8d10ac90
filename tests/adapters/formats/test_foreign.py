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


METHODS = {
    "LOHA": ("base_model.model.layers.0.q.hada_w1_a", "merge it into its base with PEFT"),
    "IA3": ("base_model.model.layers.0.q.ia3_l", "merge it into its base with PEFT"),
    "ADALORA": ("base_model.model.layers.0.q.lora_E", "merge it into its base with PEFT"),
    "PROMPT_TUNING": ("prompt_embeddings", "no weight to merge it into"),
    "PREFIX_TUNING": ("prompt_embeddings", "no weight to merge it into"),
}


@pytest.mark.parametrize("method", METHODS)
def test_another_method_of_peft_is_named_by_its_config(tmp_path, method):
    key, cure = METHODS[method]
    with pytest.raises(UnsupportedError, match=f"of type '{method}'") as caught:
        load_adapter(Tiny(), write(tmp_path, {key: torch.ones(2, 2)}, {"peft_type": method}))
    assert cure in caught.value.cure


@pytest.mark.parametrize("method", METHODS)
def test_a_file_of_peft_is_not_to_be_converted_to_its_format(tmp_path, method):
    key, _ = METHODS[method]
    with pytest.raises(UnsupportedError) as caught:
        load_adapter(Tiny(), write(tmp_path, {key: torch.ones(2, 2)}, None))
    assert ("convert it" in caught.value.cure) == (method == "LOHA")  # LyCORIS writes such keys too


def test_a_prefix_of_p_tuning_is_loaded_with_its_base(tmp_path):
    folder = write(tmp_path, {"transformer.prefix_encoder.embedding.weight": torch.ones(3, 2)}, None)
    with pytest.raises(UnsupportedError, match="P-Tuning v2") as caught:
        load_adapter(Tiny(), folder)
    assert caught.value.cure.keywords["prefix"].startswith(str(folder))
