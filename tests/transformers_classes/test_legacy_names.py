"""The names of transformers 4: for the stand-in's classes, and, where a release of 4 is installed, for its own."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest
import torch
from torch import nn

import shardload
from shardload import MismatchError, build_shell, fill, open_checkpoint, save
from shardload.transformers_classes.legacy_names import LegacyNames
from shardload.transformers_shim.configuration_utils import PretrainedConfig
from shardload.transformers_shim.modeling_utils import PreTrainedModel
from tests.tiny import random_state, write_checkpoint


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.LayerNorm = nn.LayerNorm(4)
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 1))


class Base(PreTrainedModel):
    base_model_prefix = "net"

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(6, 4)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.register_buffer("positions", torch.arange(4), persistent=False)


class Head(PreTrainedModel):
    base_model_prefix = "net"

    def __init__(self, config):
        super().__init__(config)
        self.net = Base(config)
        self.out = nn.Linear(4, 6)


def model_of(kind):
    return kind(PretrainedConfig())


def filled(kind, folder, state, **options):
    shell = build_shell(lambda: model_of(kind))
    fill(shell, open_checkpoint(write_checkpoint(folder, state)), **options)
    return shell.model


def holds(model, state):
    assert model.state_dict().keys() == state.keys()
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, state[name])] == []


def test_a_base_is_loaded_from_a_model_with_a_head(tmp_path):
    state = random_state(model_of(Head))
    with pytest.raises(MismatchError) as caught:
        filled(Base, tmp_path / "strict", state)
    assert {(fault.kind, fault.key) for fault in caught.value.report.faults} == {
        ("unexpected", "out.weight"),
        ("unexpected", "out.bias"),
    }
    base = filled(Base, tmp_path / "a", state, allow_unexpected=["out.*"])
    holds(base, {name[4:]: value for name, value in state.items() if name.startswith("net.")})


def test_a_model_with_a_head_is_loaded_from_a_base(tmp_path):
    state = random_state(model_of(Base))
    with pytest.raises(MismatchError) as caught:
        filled(Head, tmp_path / "strict", state)
    assert {(fault.kind, fault.key) for fault in caught.value.report.faults} == {
        ("missing", "out.weight"),
        ("missing", "out.bias"),
    }
    head = filled(Head, tmp_path / "a", state, allow_missing=["out.*"])
    holds(head.net, state)


def test_old_parameter_names_are_renamed(tmp_path):
    state = random_state(model_of(Head))
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta")
        .replace("parametrizations.weight.original0", "weight_g")
        .replace("parametrizations.weight.original1", "weight_v"): value
        for name, value in state.items()
    }
    assert len(old.keys() - state.keys()) == 8
    model = filled(Head, tmp_path / "a", old)
    holds(model, state)
    save(model, tmp_path / "b")  # as `save_pretrained` writes it
    assert open_checkpoint(tmp_path / "b").tensors.keys() == state.keys()


def test_two_tensors_never_take_one_name(tmp_path):
    state = random_state(model_of(Base))
    twice = {**state, "layers.1.LayerNorm.gamma": torch.ones(4)}
    with pytest.raises(MismatchError) as caught:
        filled(Base, tmp_path, twice)
    assert [fault.key for fault in caught.value.report.faults] == ["layers.1.LayerNorm.gamma"]


def test_other_modules_keep_their_names(tmp_path):
    class Plain(nn.Module):
        base_model_prefix = "net"

        def __init__(self, _config):
            super().__init__()
            self.net = nn.Linear(2, 2)

    with pytest.raises(MismatchError):
        filled(Plain, tmp_path, random_state(nn.Linear(2, 2)))


def test_a_part_of_the_stand_in_is_renamed_below_its_place(tmp_path):
    class Outer(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.part = Head(config)
            self.layers = nn.Linear(2, 2)

    state = random_state(model_of(Outer))
    stored = {name.replace("part.net.", "part."): value for name, value in state.items()}
    holds(filled(Outer, tmp_path, stored), state)


def renames(model, stored, names=None, prefix=""):
    return LegacyNames(model, prefix, names or model.state_dict().keys()).sorted_out(stored)


def module(**attributes):
    made = nn.Module()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


NAMES = {"model.text.w", "model.eyes.w", "lm_head.w"}


def test_the_patterns_of_a_class_are_applied_in_their_order_and_one_to_a_name(monkeypatch):
    monkeypatch.setattr("shardload.transformers_classes.legacy_names._mapping", lambda model: model.listed)
    model = module(listed={"^eyes": "model.eyes", r"^model(?!\.(text|eyes))": "model.text", "^text": "no"})
    old = ["eyes.w", "model.w", "lm_head.w"]
    assert renames(model, old, NAMES) == ({"eyes.w": "model.eyes.w", "model.w": "model.text.w"}, [])
    assert renames(model, NAMES, NAMES) == ({}, [])
    written = LegacyNames(model, "", NAMES).invert()
    table = dict.fromkeys(sorted(NAMES), torch.zeros(1))  # a rename looks at no tensor
    assert set(written.transform(table).table) == set(old)
    assert written.invert().names is NAMES


def test_the_classes_own_fixes_are_asked_with_or_without_their_flag():
    bare = module(_fix_state_dict_key_on_load=lambda name: name.replace("timm.", ""))
    flagged = module(_fix_state_dict_key_on_load=lambda name: (name.replace("timm.", ""), True))
    for model in (bare, flagged):
        assert renames(model, ["timm.w", "b"], {"w", "b"}) == ({"timm.w": "w"}, [])


def test_a_name_that_the_head_has_too_is_the_bases_in_a_checkpoint_of_a_base():
    model, names = module(base_model_prefix="net"), {"net.norm.w", "norm.w"}
    assert renames(model, ["norm.w"], names) == ({"norm.w": "net.norm.w"}, [])
    assert renames(model, ["norm.w", "net.norm.w"], names) == ({}, [])


def test_tables_of_positions_that_one_of_the_model_replaced_are_ignored():
    model = module(base_model_prefix="model")
    model.rotary_emb = nn.Module()
    model.rotary_emb.register_buffer("inv_freq", torch.ones(2), persistent=False)
    stored = ["w", "layers.0.rotary_emb.inv_freq", "rotary_emb.inv_freq"]
    assert renames(model, stored, {"w"}) == ({}, ["layers.0.rotary_emb.inv_freq"])


def test_a_buffer_that_is_not_stored_loses_the_prefix_too(tmp_path):
    state = random_state(model_of(Head)) | {"net.positions": torch.arange(4)}
    base = filled(Base, tmp_path, state, allow_unexpected=["out.*"])
    assert torch.equal(base.positions, torch.arange(4))


# The rest runs where a release of transformers 4 is installed; the oracle is its own loader.

installed = importlib.util.find_spec("transformers") is not None
of_4 = installed and importlib.metadata.version("transformers").startswith("4.")
with_4 = pytest.mark.skipif(not of_4, reason="needs a release of transformers 4")
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VOCAB = {**SIZES, "vocab_size": 64}


def _bert(transformers):
    return transformers.BertConfig(**VOCAB)


def _gpt2(transformers):
    return transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32)


def _llama(transformers):
    return transformers.LlamaConfig(**VOCAB, num_key_value_heads=2)


def _wav2vec2(transformers):
    conv = {"conv_dim": (16, 16), "conv_kernel": (3, 3), "conv_stride": (2, 2)}
    places = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    return transformers.Wav2Vec2Config(**SIZES, **conv, **places, vocab_size=32)


def _qwen2_vl(transformers):
    eyes = {"depth": 2, "embed_dim": 32, "num_heads": 4, "hidden_size": 32, "mlp_ratio": 2}
    turned = {"type": "mrope", "mrope_section": [1, 1, 2]}
    return transformers.Qwen2VLConfig(**VOCAB, num_key_value_heads=2, rope_scaling=turned, vision_config=eyes)


def _llava(transformers):
    eyes = transformers.CLIPVisionConfig(**SIZES, image_size=16, patch_size=8)
    return transformers.LlavaConfig(text_config=_llama(transformers), vision_config=eyes)


def _loaded_alike(transformers, folder, config, saved, name, strict):
    """Return our model and theirs, from the checkpoint of another class; what is missing is 0 in both."""
    getattr(transformers, saved)(config).save_pretrained(folder / "a", safe_serialization=True)
    kind = getattr(transformers, name)
    theirs, info = kind.from_pretrained(folder / "a", output_loading_info=True)
    ours = shardload.from_pretrained(
        folder / "a", model_class=kind, config=type(config).from_pretrained(folder / "a"), strict=strict
    )
    for lacking in info["missing_keys"]:
        for model in (ours, theirs):
            state = model.state_dict()
            bare = lacking.removeprefix(f"{kind.base_model_prefix}.")
            state[lacking if lacking in state else bare].zero_()
    holds(ours, theirs.state_dict())
    return ours, theirs


@with_4
@pytest.mark.parametrize(
    ("config", "saved", "name", "strict"),
    [
        (_bert, "BertForMaskedLM", "BertModel", False),
        (_bert, "BertModel", "BertForMaskedLM", False),
        (_bert, "BertForMaskedLM", "BertForSequenceClassification", False),
        (_gpt2, "GPT2LMHeadModel", "GPT2Model", True),
        (_gpt2, "GPT2Model", "GPT2LMHeadModel", True),
        (_llama, "LlamaForCausalLM", "LlamaModel", False),
        (_llama, "LlamaModel", "LlamaForCausalLM", False),
        (_wav2vec2, "Wav2Vec2Model", "Wav2Vec2Model", True),
        (_wav2vec2, "Wav2Vec2ForCTC", "Wav2Vec2Model", False),
        (_qwen2_vl, "Qwen2VLForConditionalGeneration", "Qwen2VLForConditionalGeneration", True),
        (_llava, "LlavaForConditionalGeneration", "LlavaForConditionalGeneration", True),
    ],
)
def test_classes_of_transformers_4_are_loaded_and_written_as_there(tmp_path, config, saved, name, strict):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, name):
        pytest.skip(f"this release has no {name}")
    torch.manual_seed(0)
    ours, theirs = _loaded_alike(transformers, tmp_path, config(transformers), saved, name, strict)
    save(ours, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs", safe_serialization=True)
    written = open_checkpoint(tmp_path / "ours").tensors.keys()
    assert written == open_checkpoint(tmp_path / "theirs").tensors.keys()
