"""Classes of transformers inside other models, and checkpoints under transformers 4's names: each part is converted."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

import shardload
from shardload import MismatchError, build_shell, fill, open_checkpoint, report_of, save
from shardload.transformers_shim.configuration_utils import PretrainedConfig
from shardload.transformers_shim.modeling_utils import PreTrainedModel
from tests.tiny import random_state, write_checkpoint

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.core_model_loading")

CODE = """
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}
TEXT = {**SIZES, "num_key_value_heads": 2, "vocab_size": 64}
EYES = {"depth": 2, "embed_dim": 32, "num_heads": 4, "hidden_size": 32, "mlp_ratio": 2}
TURNED = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}

def mixtral():
    return transformers.MixtralConfig(**TEXT, num_local_experts=4, attn_implementation="eager")

def clip():
    return transformers.CLIPVisionConfig(**SIZES, image_size=16, patch_size=8)

def qwen():
    text = {**TEXT, "rope_parameters": TURNED}
    return transformers.Qwen2VLConfig(text_config=text, vision_config=EYES)

class OwnConfig(PretrainedConfig):
    model_type = "own"

class Own(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.eyes = transformers.CLIPVisionModel(clip())
        self.texts = nn.ModuleList(transformers.MixtralForCausalLM(mixtral()) for _ in range(2))
        self.qwen = transformers.Qwen2VLForConditionalGeneration(qwen())
        self.post_init()

class Layers(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(MixtralDecoderLayer(mixtral(), n) for n in range(2))
        self.post_init()
"""


def old_names(state):
    """Return a state dict under the names, and in the parts, that releases of 4 wrote."""
    old = {}
    for name, value in state.items():
        name = name.replace(".mlp.gate.", ".block_sparse_moe.gate.")
        name = name.replace("qwen.model.visual.", "qwen.visual.").replace(
            "qwen.model.language_model.", "qwen.model."
        )
        name = re.sub(r"eyes\.(?!vision_model\.)", "eyes.vision_model.", name)
        before, _, kind = name.partition(".mlp.experts.")
        for number in range(len(value) if kind else 0):
            expert = f"{before}.block_sparse_moe.experts.{number}"
            if kind == "down_proj":
                old[f"{expert}.w2.weight"] = value[number]
            else:
                old[f"{expert}.w1.weight"], old[f"{expert}.w3.weight"] = value[number].chunk(2)
        if not kind:
            old[name] = value
    return old


def repo(folder, name):
    """Write the repo, with a checkpoint of transformers 4; return the model's own values."""
    folder.mkdir()
    (folder / "modeling_own.py").write_text(CODE)
    classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": f"modeling_own.{name}"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": classes}))
    made = shardload.resolve_class(folder, trust_remote_code=True, remote_base="transformers")
    config = shardload.load_config(folder, trust_remote_code=True, remote_base="transformers")
    state = random_state(made(config))
    write_checkpoint(folder, old_names(state))
    return state


def same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(("base", "serving"), [("auto", "parts"), ("transformers", "transformers")])
def test_parts_of_a_repos_own_model_are_converted_as_there(tmp_path, base, serving):
    state = repo(tmp_path / "own", "Own")
    ours = shardload.from_pretrained(tmp_path / "own", trust_remote_code=True, remote_base=base)
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "own", trust_remote_code=True)
    assert report_of(ours).remote_base == serving
    same(ours.state_dict(), theirs.state_dict())
    same(ours.state_dict(), state)
    save(ours, tmp_path / "again")
    stored = open_checkpoint(tmp_path / "own").tensors.keys()
    assert open_checkpoint(tmp_path / "again").tensors.keys() == stored


def test_layers_that_are_no_models_are_refused_with_the_map_that_cures(tmp_path):
    state = repo(tmp_path / "own", "Layers")  # transformers itself leaves such experts without their values
    with pytest.raises(MismatchError) as caught:
        shardload.from_pretrained(tmp_path / "own", trust_remote_code=True)
    cured = shardload.from_pretrained(
        tmp_path / "own", trust_remote_code=True, key_map=caught.value.report.key_map
    )
    same(cured.state_dict(), state)


def parts(model):
    given = {}
    exec(CODE, given)  # the configs of the repo above
    model.eyes = transformers.CLIPVisionModel(given["clip"]())
    model.text = transformers.MixtralModel(given["mixtral"]())


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        parts(self)


class Served(PreTrainedModel):
    base_model_prefix = "base"

    def __init__(self):
        super().__init__(PretrainedConfig())
        parts(self)
        self.mix = nn.Linear(4, 4)


class WithHead(PreTrainedModel):
    base_model_prefix = "base"

    def __init__(self):
        super().__init__(PretrainedConfig())
        self.base = Served()


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        (Plain, "", ""),
        (Served, "", ""),
        (WithHead, "", ""),
        (WithHead, "base.", ""),
        (Served, "", "base."),
    ],
)
def test_parts_of_other_models_are_converted_with_the_prefix_of_a_base_added_or_stripped(
    tmp_path, kind, old, new
):
    state = random_state(kind())
    stored = {new + name.removeprefix(old): value for name, value in old_names(state).items()}
    shell = build_shell(kind)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, stored)))
    same(shell.model.state_dict(), state)
