"""Repos that wrap transformers' own classes, served by parts, against the real classes filled by torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import shardload
from shardload import report_of

from .part_repos import CHAT, EMBED, EYES, IMAGES, MUSIC, READER, SOUND, TEXT, filled, stored, write_repo

transformers = pytest.importorskip("transformers")

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17, 18]])
PADDED = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])


def load(folder, base="auto", **options):
    model = shardload.from_pretrained(folder, trust_remote_code=True, remote_base=base, **options)
    assert report_of(model).remote_base == "parts"
    assert not any(kind.__module__.startswith("transformers.") for kind in type(model).__mro__)
    return model


def chat(folder, **text):
    write_repo(folder, CHAT, ("ChatConfig", "Chat"), {"model_type": "chat", "llm_config": {**TEXT, **text}})
    kind = transformers.LlamaForCausalLM if text else transformers.Qwen2ForCausalLM
    config = transformers.LlamaConfig if text else transformers.Qwen2Config
    language, vision = filled(kind(config(**TEXT))), filled(nn.Linear(12, 32), 1)
    stored(folder, language_model=language, vision=vision)
    return language, vision


@pytest.mark.parametrize("text", [{}, {"architectures": ["LlamaForCausalLM"]}])
def test_a_vision_model_around_the_librarys_own_language_model(tmp_path, text):
    language, vision = chat(tmp_path, **text)
    model = load(tmp_path)
    pixels = torch.randn(2, 3, 12)
    with torch.no_grad():
        embeds = torch.cat([vision(pixels), language.get_input_embeddings()(IDS)[:, 3:]], dim=1)
        for mask in (None, PADDED):
            made = model(pixels, IDS, attention_mask=mask, output_hidden_states=True)
            expected = language(
                inputs_embeds=embeds, attention_mask=mask, use_cache=False, output_hidden_states=True
            )
            assert torch.equal(made.logits, expected.logits)
            assert all(map(torch.equal, made.hidden_states, expected.hidden_states))
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for beams in (1, 3):
        made = model.generate(pixels, IDS, attention_mask=PADDED, num_beams=beams, **options)
        expected = language.generate(inputs_embeds=embeds, attention_mask=PADDED, num_beams=beams, **options)
        assert made.tolist() == expected.tolist()


def test_a_tower_of_the_librarys_under_the_names_of_its_old_checkpoints(tmp_path):
    settings = {"model_type": "eyes", "vision_config": IMAGES, **TEXT}
    write_repo(tmp_path, EYES, ("EyesConfig", "Eyes"), settings)
    llm = filled(transformers.Qwen2Model(transformers.Qwen2Config(**TEXT)))
    vpm = filled(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**IMAGES)), 1)
    head = filled(nn.Linear(32, 99, bias=False), 2)
    old = nn.ModuleDict({"vision_model": getattr(vpm, "vision_model", vpm)})  # as all releases of 4 have it
    stored(tmp_path, llm=llm, vpm=old, head=head)
    model = load(tmp_path)
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        seen = vpm(pixels).last_hidden_state
        states = llm(inputs_embeds=torch.cat([seen, llm.embed_tokens(IDS)], dim=1)).last_hidden_state
        assert torch.equal(model(pixels, IDS), head(states))


def test_a_subclass_with_a_loop_of_its_own_over_the_librarys_layers(tmp_path):
    write_repo(tmp_path, MUSIC, ("MusicConfig", "Music"), {"model_type": "music", **SOUND})
    hubert = filled(transformers.HubertModel(transformers.HubertConfig(**SOUND)))
    stored(tmp_path, _=hubert)
    model = load(tmp_path)
    sound = torch.randn(2, 200)
    with torch.no_grad():
        expected = hubert(sound, output_hidden_states=True)
        made = model(sound, output_hidden_states=True)
    assert torch.equal(made.last_hidden_state, expected.last_hidden_state)
    assert made.hidden_states[1].shape == expected.hidden_states[1].shape


def test_a_registered_subclass_that_attends_both_ways(tmp_path):
    settings = {
        "model_type": "embed",
        "text_config": {"model_type": "both_ways", "sliding_window": None, **TEXT},
    }
    write_repo(tmp_path, EMBED, ("EmbedConfig", "Embed"), settings)
    mistral = filled(transformers.MistralModel(transformers.MistralConfig(sliding_window=None, **TEXT)))
    stored(tmp_path, embedding_model=mistral)
    model = load(tmp_path)
    mask = PADDED[:, None, None, :].bool().expand(2, 1, 7, 7)
    with torch.no_grad():
        made = model(IDS, PADDED)
        expected = mistral(IDS, attention_mask=mask, use_cache=False).last_hidden_state
    assert torch.allclose(made[PADDED.bool()], expected[PADDED.bool()], atol=1e-5)
    assert not torch.allclose(made[:, 0], mistral(IDS, use_cache=False).last_hidden_state[:, 0], atol=1e-3)


@pytest.fixture
def reader(tmp_path):
    settings = {
        "model_type": "reader",
        **{name: TEXT[name] for name in TEXT if name not in ("intermediate_size",)},
    }
    write_repo(tmp_path, READER, ("ReaderConfig", "Reader"), settings, "AutoModelForCausalLM")
    config = transformers.LlamaConfig(**TEXT, attn_implementation="eager")
    llama = filled(transformers.LlamaModel(config))
    norm, head = filled(nn.LayerNorm(32), 1), filled(nn.Linear(32, 99, bias=False), 2)
    layers = [nn.ModuleDict({"self_attn": layer.self_attn, "norm": norm}) for layer in llama.layers]
    stored(tmp_path, embed_tokens=llama.embed_tokens, layers=nn.ModuleList(layers), lm_head=head)

    def expected(ids):
        states = llama.embed_tokens(ids)
        positions = llama.rotary_emb(states, torch.arange(ids.shape[1])[None])
        mask = torch.full((1, 1, ids.shape[1], ids.shape[1]), torch.finfo(torch.float32).min).triu(1)
        weights = []
        for layer in llama.layers:
            made, weight = layer.self_attn(norm(states), position_embeddings=positions, attention_mask=mask)[
                :2
            ]
            states = states + made
            weights.append(weight)
        return head(states), weights

    return tmp_path, expected


def test_layers_of_the_librarys_in_code_that_calls_them_as_transformers_4_did(reader):
    folder, expected = reader
    model = load(folder)
    with torch.no_grad():
        logits, weights = expected(IDS)
        made = model(IDS, output_attentions=True)
        assert torch.allclose(made.logits, logits, atol=1e-6)
        assert all(
            torch.allclose(one, other, atol=1e-6) for one, other in zip(made.attentions, weights, strict=True)
        )
        tokens = model.generate(IDS, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
        ids = IDS
        for _ in range(8):
            ids = torch.cat([ids, expected(ids)[0][:, -1:].argmax(-1)], dim=1)
    assert tokens.tolist() == ids.tolist()
