"""load_config and attach_generation_config."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import shardload
from shardload.errors import CorruptError, RemoteCodeError, ShardloadError, UntrustedCodeError, UsageError
from shardload.remote_code import attach_generation_config, load_config, resolve_class
from shardload.remote_code.config import _NAMED_FOR_TIMM
from shardload.transformers_shim.generation.configuration_utils import GenerationConfig
from shardload.transformers_shim.generation.utils import GenerationMixin
from shardload.where import CodeTrust

from .repos import AUTO_MAP, COMMIT, CONFIG, MODEL, HubLike, build, local, tiny, write


def test_the_repos_own_class_gets_the_settings_and_its_defaults(tmp_path):
    source, config = tiny(tmp_path)
    loaded = load_config(source, {**config, "extra": [1]}, CodeTrust(True))
    assert type(loaded.config).__name__ == "TinyConfig"
    assert (loaded.config.hidden_size, loaded.config.extra) == (4, [1])


def test_without_auto_map_the_settings_are_attributes_of_a_plain_config(tmp_path):
    source, _ = write(tmp_path, {})
    loaded = load_config(source, {"width": 7, "nested": {"a": 1}})
    assert (loaded.config.width, loaded.config.nested, loaded.config.use_return_dict) == (7, {"a": 1}, True)
    assert loaded.origin == "config.json"


def test_a_repo_without_config_json_gives_defaults(tmp_path):
    source, _ = write(tmp_path, {})
    assert load_config(source, None).config.max_length == 20


SEES_DTYPE = CONFIG.replace(
    "super().__init__(**kwargs)", "self.seen = kwargs.get('torch_dtype')\n        super().__init__(**kwargs)"
)


def test_the_dtype_stands_in_the_settings_before_the_class_sees_them(tmp_path):
    source, config = tiny(tmp_path, config=SEES_DTYPE)
    for dtype in (torch.bfloat16, "bfloat16", "torch.bfloat16"):
        loaded = load_config(source, {**config, "torch_dtype": "float16"}, CodeTrust(True), dtype=dtype)
        assert loaded.config.torch_dtype is torch.bfloat16
        assert loaded.config.seen is torch.bfloat16


def test_the_model_constructor_sees_the_dtype(tmp_path):
    model = MODEL.replace(
        "nn.Linear(", "nn.Linear(dtype=config.torch_dtype, in_features=4, out_features=4) or nn.Linear("
    )
    source, config = tiny(tmp_path, model=model)
    assert build(source, config, dtype=torch.float64).linear.weight.dtype is torch.float64


def test_without_a_dtype_the_stored_name_becomes_a_dtype(tmp_path):
    source, config = tiny(tmp_path)
    for settings in ({"torch_dtype": "float16"}, {"dtype": "float16"}):
        loaded = load_config(source, {**config, **settings}, CodeTrust(True), dtype="auto")
        assert loaded.config.torch_dtype is torch.float16


def test_an_unknown_dtype_is_one_typed_error(tmp_path):
    source, _ = write(tmp_path, {})
    with pytest.raises(UsageError, match="float17"):
        load_config(source, {}, dtype="float17")
    with pytest.raises(CorruptError, match="float17") as caught:
        load_config(source, {"torch_dtype": "float17"})
    assert caught.value.where == "config.json, torch_dtype"


def test_name_and_commit_are_on_the_config(tmp_path):
    _, config = tiny(tmp_path)
    loaded = load_config(HubLike(tmp_path), config, CodeTrust(True, COMMIT))
    assert loaded.config.name_or_path == "org/name"
    assert loaded.config._commit_hash == COMMIT
    assert load_config(local(tmp_path), config, CodeTrust(True)).config.name_or_path == str(tmp_path)


def test_a_config_class_that_fails_is_an_error_with_its_line(tmp_path):
    source, config = tiny(
        tmp_path, config=CONFIG.replace("self.hidden_size = hidden_size", "hidden_size / 0")
    )
    with pytest.raises(RemoteCodeError, match="ZeroDivisionError") as caught:
        load_config(source, config, CodeTrust(True))
    assert caught.value.where.startswith(f"{tmp_path / 'configuration_tiny.py'}:")


def test_a_callers_class_with_a_config_class_gets_that(tmp_path):
    from shardload.transformers_shim.configuration_utils import PretrainedConfig

    class MyConfig(PretrainedConfig):
        pass

    class Mine(nn.Module):
        config_class = MyConfig

    source, config = tiny(tmp_path)
    assert type(load_config(source, config, model_class=Mine).config) is MyConfig


def test_a_config_class_that_is_no_pretrained_config_is_called_with_the_settings(tmp_path):
    plain = "class TinyConfig:\n    def __init__(self, **settings):\n        self.__dict__.update(settings)\n"
    source, config = tiny(tmp_path, config=plain)
    assert load_config(source, {**config, "a": 5}, CodeTrust(True)).config.a == 5


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 32,
}


def test_architectures_name_a_class_of_an_installed_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    source, _ = write(tmp_path, {}, LLAMA)
    loaded = load_config(source, LLAMA, dtype=torch.float16)
    assert type(loaded.config) is transformers.LlamaConfig
    assert loaded.config.dtype is torch.float16
    resolved = resolve_class(source, LLAMA)
    assert type(resolved.make(loaded.config)) is transformers.LlamaForCausalLM
    assert resolved.remote_base is None
    assert f"transformers {transformers.__version__}" in resolved.origin
    assert resolved.make(loaded.config).config.hidden_size == 16


def test_auto_class_picks_another_class_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    source, _ = write(tmp_path, {}, LLAMA)
    resolved = resolve_class(source, LLAMA, auto_class="AutoModelForSequenceClassification")
    loaded = load_config(source, LLAMA)
    assert type(resolved.make(loaded.config)) is transformers.LlamaForSequenceClassification


def test_settings_that_their_class_refuses_are_a_corrupt_config(tmp_path):
    pytest.importorskip("transformers")
    source, _ = write(tmp_path, {}, LLAMA)
    with pytest.raises(CorruptError, match="refuses the settings"):
        load_config(source, {**LLAMA, "num_attention_heads": "many"})


def generation(folder, text):
    source, config = tiny(
        folder, model=MODEL + "\n    def prepare_inputs_for_generation(self, x): return {}\n"
    )
    model = build(source, config)
    (folder / "generation_config.json").write_text(text)
    return model, local(folder)


def test_generation_config_reaches_the_model(tmp_path):
    model, source = generation(tmp_path, json.dumps({"top_p": 0.5, "max_length": 99, "own": 1}))
    assert model.generation_config.top_p == 1.0
    assert "generation_config.json" in attach_generation_config(model, source)
    settings = model.generation_config
    assert (settings.top_p, settings.max_length, settings.own, settings.num_beams) == (0.5, 99, 1, 1)


def test_a_model_without_a_place_for_it_is_left_alone(tmp_path):
    _, source = generation(tmp_path, "{}")
    model = nn.Linear(1, 1)
    assert "not used" in attach_generation_config(model, source)
    assert not hasattr(model, "generation_config")


def test_without_the_file_there_is_nothing_to_say(tmp_path):
    source, config = tiny(tmp_path)
    assert attach_generation_config(build(source, config), source) is None


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_broken_generation_config_is_named(tmp_path, text):
    model, source = generation(tmp_path, text)
    with pytest.raises(CorruptError, match=r"generation_config\.json"):
        attach_generation_config(model, source)


def test_generation_config_of_a_real_transformers_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "generation_config.json").write_text('{"top_p": 0.5}')
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    attach_generation_config(model, local(tmp_path))
    assert isinstance(model.generation_config, transformers.GenerationConfig)
    assert model.generation_config.top_p == 0.5


def test_settings_of_generation_are_of_the_loop_that_reads_them(tmp_path):
    """A class of transformers beside the loop does not change the loop, nor the defaults that it reads."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "generation_config.json").write_text('{"top_p": 0.5}')
    bases = {
        GenerationConfig: (GenerationMixin, transformers.PreTrainedModel),
        transformers.GenerationConfig: (transformers.GenerationMixin, transformers.PreTrainedModel),
    }
    for kind, classes in bases.items():
        model = type("Mixed", classes, {"__init__": nn.Module.__init__})()
        model.generation_config = None
        attach_generation_config(model, local(tmp_path))
        assert type(model.generation_config) is kind


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("part", [None, "text_config", "parts_in_a_list"])
def test_a_repo_of_kernels_that_a_file_names_is_refused(tmp_path, name, part):
    """transformers fetches such a repo and imports its code when it makes the model."""
    transformers = pytest.importorskip("transformers")
    settings = {
        **transformers.LlamaConfig(hidden_size=32, num_hidden_layers=1).to_dict(),
        "architectures": ["LlamaForCausalLM"],
    }
    named = {name: "kernels-community/anything@main"}
    settings |= named if part is None else {part: [1, [named]] if part == "parts_in_a_list" else named}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UntrustedCodeError, match="kernels-community/anything") as refused:
        shardload.load_config(tmp_path)
    assert refused.value.where == f"config.json, {name}"
    settings[part or name] = {name: {"": named[name]}} if part else {"": named[name]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UntrustedCodeError, match="kernels-community/anything"):
        shardload.load_config(tmp_path)
    settings.pop(part or name)
    (tmp_path / "config.json").write_text(json.dumps({**settings, "attn_implementation": "sdpa"}))
    assert shardload.load_config(tmp_path).hidden_size == 32


@pytest.mark.parametrize("kind", [["llama"], {"llama": 1}, 3])
@pytest.mark.parametrize("names", [None, ["LlamaForCausalLM"]])
def test_a_model_type_that_is_no_name_is_a_corrupt_config(tmp_path, kind, names):
    pytest.importorskip("transformers")
    settings = {"model_type": kind, "num_hidden_layers": 1, **({"architectures": names} if names else {})}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CorruptError, match="model_type is not a name") as refused:
        shardload.load_config(tmp_path)
    assert refused.value.where == "config.json, model_type"
    with pytest.raises(CorruptError, match="model_type is not a name"):
        resolve_class(local(tmp_path), settings, auto_class="AutoModel")
    plain = load_config(local(tmp_path), settings, model_class=lambda config: nn.Linear(1, 1))
    assert plain.config.model_type == kind


BACKBONE = {"model_type": "detr", "backbone": "evil/bb", "backbone_config": None}
LOOKED_UP = [
    {**BACKBONE, "use_timm_backbone": False, "use_pretrained_backbone": True},
    {**BACKBONE, "backbone": "resnet50", "use_timm_backbone": False},
    {**BACKBONE, "backbone": "resnet50", "backbone_kwargs": {"out_indices": [1]}},
    {**BACKBONE, "backbone": "hf-hub:evil/bb"},
    {**BACKBONE, "model_type": "rt_detr", "backbone": "resnet50"},
    {"model_type": "timm_backbone", "backbone": "hf-hub:evil/bb"},
    {"model_type": "timm_wrapper", "architecture": "hf-hub:evil/bb"},
    {"model_type": "detr", "backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:evil/bb"}},
]


@pytest.mark.parametrize("settings", LOOKED_UP)
def test_a_backbone_that_would_be_looked_up_on_the_hub_is_refused(tmp_path, settings):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UntrustedCodeError, match="another repo, .*(evil/bb|resnet50)") as refused:
        shardload.load_config(tmp_path)
    assert refused.value.where in ("config.json, backbone", "config.json, architecture")
    assert "remove the entry" in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        {**BACKBONE, "backbone": "resnet50", "use_timm_backbone": True, "use_pretrained_backbone": True},
        {**BACKBONE, "backbone_config": {"model_type": "resnet"}, "use_timm_backbone": False},
        {"model_type": "rt_detr", "backbone": None},
        {"model_type": "timm_backbone", "backbone": "resnet50", "use_timm_backbone": True},
    ],
)
def test_a_backbone_that_the_file_describes_is_taken(tmp_path, settings):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert shardload.load_config(tmp_path).model_type == settings["model_type"]


@pytest.mark.parametrize("kind", sorted(_NAMED_FOR_TIMM))
def test_classes_whose_backbone_is_one_of_timm_look_nothing_up(monkeypatch, kind):
    transformers = pytest.importorskip("transformers")
    hub = pytest.importorskip("huggingface_hub")

    asked = []
    monkeypatch.setattr(hub.HfApi, "repo_exists", lambda _self, name, **_: asked.append(name) or False)
    named = {"model_type": kind, "backbone": "resnet50", "backbone_config": None}
    config = transformers.CONFIG_MAPPING[kind].from_dict({**named, "use_timm_backbone": True})
    assert config.backbone_config.backbone == "resnet50"
    assert not asked
    transformers.CONFIG_MAPPING[kind].from_dict({**named, "use_timm_backbone": False})
    assert asked == ["resnet50"]


@pytest.mark.parametrize("name", ["Mamba2ForCausalLM", "BambaForCausalLM"])
def test_an_infinite_default_that_transformers_wrote_is_read(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    cls = getattr(transformers, name).config_class
    cls(architectures=[name]).save_pretrained(tmp_path)
    assert "__float__" in (tmp_path / "config.json").read_text()
    theirs = cls.from_pretrained(tmp_path).time_step_limit
    assert list(shardload.load_config(tmp_path).time_step_limit) == list(theirs)


GENERATES = """
    def prepare_inputs_for_generation(self, x): return {}
"""
WITH_TEXT = CONFIG.replace(
    "**kwargs):",
    "text_config=None, **kwargs):\n        self.text_config = PretrainedConfig(**(text_config or {}))",
)


@pytest.mark.parametrize("base", ["shim", "transformers"])
def test_settings_of_generation_in_config_json_reach_the_model(tmp_path, base):
    """The stand-in has them in its config, as 4.41; transformers 5 takes them from the file."""
    if base == "transformers":
        pytest.importorskip("transformers")
    settings = {
        "auto_map": AUTO_MAP, "num_beams": 4, "max_length": 142, "do_sample": True, "eos_token_id": [2, 3],
        "text_config": {"top_p": 0.5, "num_beams": 9},
    }  # fmt: skip
    tiny(tmp_path, model=MODEL + GENERATES, config=WITH_TEXT)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    if base == "transformers":
        code = MODEL.replace(
            "import PreTrainedModel", "import PreTrainedModel\nfrom transformers import GenerationMixin"
        )
        code = code.replace("(PreTrainedModel)", "(PreTrainedModel, GenerationMixin)")
        (tmp_path / "modeling_tiny.py").write_text(code + GENERATES)
    torch.save(
        {"linear.weight": torch.ones(4, 4), "linear.bias": torch.zeros(4)}, tmp_path / "pytorch_model.bin"
    )
    model = shardload.from_pretrained(tmp_path, trust_remote_code=True, remote_base=base)
    found = model.generation_config
    assert (found.num_beams, found.max_length, found.do_sample) == (4, 142, True)
    assert (found.eos_token_id, found.top_p) == ([2, 3], 0.5)


def test_a_nested_auto_map_leads_a_class_of_transformers_to_no_code(tmp_path, capsys):
    pytest.importorskip("transformers")
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    nested = {"model_type": "musicgen_decoder", "auto_map": {"AutoModel": "evil/repo--evil.Model"}}
    settings = {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "vision_config": vision,
    }
    (tmp_path / "config.json").write_text(json.dumps({**settings, "text_config": nested}))
    config = shardload.load_config(tmp_path)
    assert not hasattr(config.text_config, "auto_map")
    with pytest.raises(ShardloadError, match="MusicgenDecoderConfig"):
        shardload.build_shell(lambda: shardload.resolve_class(tmp_path)(config))
    assert "Do you wish to run" not in capsys.readouterr().out
