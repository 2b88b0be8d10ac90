"""Weights that code for transformers 4 asks bare stacks and layers for, against the real class in plain attention."""

from __future__ import annotations

import pytest
import torch

from shardload.library_parts.attention_weights import KEPT, _as_fused, is_cross
from tests.remote_code.repos import build, write

transformers = pytest.importorskip("transformers")
needs_bare_stacks = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="until 5.0 stacks return weights themselves"
)

CODE = """
import torch
from torch import nn
from transformers import PreTrainedModel, PretrainedConfig
from transformers.models.{folder}.modeling_{folder} import {model}
from transformers.models.{folder}.configuration_{folder} import {config}
class C(PretrainedConfig):
    model_type = "wrap"
class M(PreTrainedModel):
    config_class = C
    def __init__(self, config):
        super().__init__(config)
        self.inner = {model}({config}(**config.settings))
    def stack(self, states, mask, **asked):
        return self.inner.{stack}({given}, attention_mask=mask, output_attentions=True, **asked)
    def loop(self, states, mask):
        found = ()
        for layer in self.inner.{stack}.{layers}:
            outputs = layer(states, attention_mask=mask, output_attentions=True)
            states, found = outputs[0], found + outputs[1:]
        return states, found
    def silent(self, states, mask):
        return self.inner.{stack}({given}, attention_mask=mask)
"""
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = {**SMALL, "vocab_size": 19}
EMBEDS = "inputs_embeds=states"
VISION = {**SMALL, "image_size": 8, "patch_size": 4}
FAMILIES = {
    "bert": ("BertModel", "BertConfig", {**SMALL, "vocab_size": 19}, "encoder", "layer", "states"),
    "electra": ("ElectraModel", "ElectraConfig", {**WORDS, "embedding_size": 16}, "encoder", "layer", "states"),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", VISION, "encoder", "layers", EMBEDS),
    "clip": ("CLIPTextModel", "CLIPTextConfig", WORDS, "encoder", "layers", EMBEDS),
    "distilbert": (
        "DistilBertModel", "DistilBertConfig",
        {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4, "vocab_size": 19}, "transformer", "layer", "states",
    ),
}  # fmt: skip


def both(tmp_path, family, attention="sdpa"):
    """Return a repo's model around a part, and the real class with its weights in plain attention."""
    model, config, settings, stack, layers, given = FAMILIES[family]
    code = CODE.format(folder=family, model=model, config=config, stack=stack, layers=layers, given=given)
    document = {"auto_map": {"AutoConfig": "wrap.C", "AutoModel": "wrap.M"}, "settings": settings}
    torch.manual_seed(0)
    ours = build(*write(tmp_path, {"wrap.py": code}, document), remote_base="parts").eval()
    ours.inner.config._attn_implementation = attention
    real = getattr(transformers, model)(
        getattr(transformers, config)(**settings, attn_implementation="eager")
    ).eval()
    real.load_state_dict(ours.inner.state_dict())
    return ours, real, stack


def weights_of(real, stack, given, states, mask):
    """Return the weights that the real class's stack computes, taken where they arise."""
    kept = []
    attend = [each for each in getattr(real, stack).modules() if type(each).__name__.endswith("Attention")]
    hooks = [
        each.register_forward_hook(lambda _module, _args, output: kept.append(output)) for each in attend
    ]
    output = getattr(real, stack)(**{given: states}, attention_mask=mask)
    for hook in hooks:
        hook.remove()
    return output[0], list({id(each[1]): each[1] for each in kept if isinstance(each, tuple)}.values())


@needs_bare_stacks
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_bare_stack_returns_the_weights_of_the_real_class(tmp_path, family, attention):
    ours, real, stack = both(tmp_path, family, attention)
    states = torch.randn(2, 5, 16)
    mask = torch.zeros(2, 1, 5, 5).masked_fill(
        torch.ones(5, 5).triu(1).bool(), torch.finfo(torch.float32).min
    )
    given = "inputs_embeds" if "inputs" in FAMILIES[family][5] else "hidden_states"
    last, expected = weights_of(real, stack, given, states, mask)
    output = ours.stack(states, mask, output_hidden_states=True)
    assert len(output.attentions) == len(expected) == 2
    assert all(torch.equal(*pair) for pair in zip(output.attentions, expected, strict=True))
    assert torch.equal(output[0], last)
    assert len(output.hidden_states) == 3
    looped, found = ours.loop(states, mask)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert torch.equal(looped, last)
    assert ours.inner.config._attn_implementation == attention
    assert ours.silent(states, mask).get("attentions") is None


@needs_bare_stacks
def test_gradients_reach_the_parameters_through_weights(tmp_path):
    ours, _, _ = both(tmp_path, "bert")
    sum(each.square().sum() for each in ours.stack(torch.randn(1, 3, 16), None).attentions).backward()
    layer = ours.inner.encoder.layer[0].attention.self.query
    assert layer.weight.grad.abs().sum() > 0


@needs_bare_stacks
@pytest.mark.parametrize("causal", [True, False])
def test_without_a_mask_weights_are_those_of_fused_attention(tmp_path, causal):
    """The flag `is_causal` alone says it to fused attention; plain attention would look ahead."""
    ours, _, _ = both(tmp_path, "clip")
    states = torch.randn(2, 5, 16)
    for layer in ours.inner.encoder.layers:
        layer.self_attn.is_causal = causal
    output = ours.stack(states, None)
    assert torch.allclose(output[0], ours.silent(states, None)[0], atol=1e-6)
    assert all(bool((each.triu(1) == 0).all()) is causal for each in output.attentions)


def test_masks_of_flags_are_added(tmp_path):
    module, query = torch.nn.Module(), torch.randn(1, 1, 3, 4)
    flags = torch.tensor([[[[True, False, True]]]])
    added = _as_fused(module, query, query, flags, None)
    assert added.flatten().tolist() == [0, torch.finfo(torch.float32).min, 0]
    assert _as_fused(module, query[:, :, :1], query, None, None) is None
    assert is_cross("layer.0.crossattention.self")
    assert not is_cross("layer.0.attention.self")
    assert KEPT not in ("eager", "sdpa")
