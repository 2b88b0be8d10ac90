"""A class that is a part of a repo's model gets its part of config.json; what is printed loads its weights."""

from __future__ import annotations

import pytest
import torch

from shardload import MismatchError, from_pretrained
from tests.cures.kinds import choices
from tests.cures.typed import copied, typed

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.core_model_loading")

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**SIZES, "image_size": 16, "patch_size": 8}
TEXT = {**SIZES, "vocab_size": 64, "max_position_embeddings": 16}


def clip() -> torch.nn.Module:
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    return transformers.CLIPModel(config)


def llava() -> torch.nn.Module:
    vision, text = transformers.CLIPVisionConfig(**VISION), transformers.LlamaConfig(**TEXT)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    return transformers.LlavaForConditionalGeneration(config)


def language_model(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return model.model.language_model.state_dict()


def with_head(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"model.{key}": value for key, value in language_model(model).items()} | {
        "lm_head.weight": model.lm_head.weight
    }


PARTS = {
    "CLIPVisionModel": (clip, None),
    "CLIPTextModel": (clip, None),
    "CLIPVisionModelWithProjection": (clip, None),
    "LlamaForCausalLM": (llava, with_head),
    "LlamaModel": (llava, language_model),
    "LlavaModel": (llava, None),
}
"""Class -> the whole model, and the part of it as transformers loads it; None: transformers loads the part alone."""


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_repo_of_several_models_is_loaded_as_transformers_loads_it(name, tmp_path):
    """Every cure that can be typed, name by name and bit for bit."""
    whole, part_of = PARTS[name]
    torch.manual_seed(0)
    made = whole()
    made.save_pretrained(tmp_path / "repo")
    cls = getattr(transformers, name)
    with pytest.raises(MismatchError) as caught:
        from_pretrained(tmp_path / "repo", model_class=cls, progress=False)
    applied = 0
    for number, cure in enumerate(choices(caught.value.cure)):
        steps = typed(str(cure))
        if not steps.is_whole:
            continue
        folder = copied(tmp_path / "repo", tmp_path / f"{number}")
        steps.edit(folder)
        loaded = from_pretrained(folder, model_class=cls, progress=False, **steps.keywords).state_dict()
        loader = cls if part_of is None else type(made)
        theirs = loader.from_pretrained(folder)
        truth = theirs.state_dict() if part_of is None else part_of(theirs)
        assert loaded.keys() == truth.keys()
        assert all(torch.equal(value, truth[key]) for key, value in loaded.items())
        assert all(value.dtype is truth[key].dtype for key, value in loaded.items())
        applied += 1
    assert applied, caught.value.cure


def test_the_stored_head_of_a_part_is_a_head(tmp_path):
    torch.manual_seed(0)
    model = llava()
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(
        tmp_path, model_class=transformers.LlavaModel, allow_unexpected="head", progress=False
    )
    truth = model.model.state_dict()
    assert all(torch.equal(value, truth[key]) for key, value in loaded.state_dict().items())


def test_a_dtype_of_the_whole_is_that_of_a_part_that_names_none(tmp_path):
    from shardload.transformers_classes.config_part import settings_for

    settings = {"model_type": "clip", "dtype": "bfloat16", "vision_config": {"hidden_size": 8}, "other": {}}
    found = settings_for(transformers.CLIPVisionConfig, settings)
    assert found == {"dtype": "bfloat16", "hidden_size": 8}
    assert settings_for(transformers.CLIPConfig, settings) is settings
