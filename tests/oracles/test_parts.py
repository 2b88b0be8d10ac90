"""Repos that wrap transformers' own classes, served by parts, against the real classes filled by torch."""

from __future__ import annotations

import hashlib
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import shardload
from shardload import report_of
from shardload.checkpoint.json_file import read_config
from shardload.checkpoint.sources import find_source
from shardload.library_parts import model_files
from shardload.library_parts.release import installed
from shardload.remote_code.asked_names import library_files
from shardload.remote_code.asked_parts import asked_parts
from shardload.remote_code.importer import own_code
from tests.tiny import run_python

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


def test_what_a_constructor_sets_before_it_fails_is_not_in_the_config_of_the_next(tmp_path):
    first = "super().__init__(config)\n        if"
    code = CHAT.replace(first, f"config.llm_config.attn_implementation = 'eager'\n        {first}")
    chat(tmp_path)
    (tmp_path / "modeling_own.py").write_text(code)
    model = load(tmp_path)
    assert model.language_model.config.attn_implementation == "eager"
    assert model.language_model.config._attn_implementation == "sdpa"


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


def test_a_stack_of_layers_returns_the_states_that_old_code_asks_it_for(tmp_path):
    code = MUSIC.replace("self.encoder = MusicEncoder(config)", "self.encoder = HubertEncoder(config)")
    write_repo(tmp_path, code, ("MusicConfig", "Music"), {"model_type": "music", **SOUND})
    hubert = filled(transformers.HubertModel(transformers.HubertConfig(**SOUND)))
    stored(tmp_path, _=hubert)
    sound = torch.randn(2, 200)
    with torch.no_grad():
        made = load(tmp_path)(sound, output_hidden_states=True)
        expected = hubert(sound, output_hidden_states=True)
    assert len(made.hidden_states) == len(expected.hidden_states) == 3
    assert all(map(torch.equal, made.hidden_states, expected.hidden_states))


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


def test_gradients_of_a_part_are_the_real_classs_with_and_without_checkpointing(tmp_path):
    language, vision = chat(tmp_path)
    model = load(tmp_path).train()
    pixels = torch.randn(2, 3, 12)
    embeds = torch.cat([vision(pixels), language.get_input_embeddings()(IDS)[:, 3:]], dim=1)
    language.train()(inputs_embeds=embeds, use_cache=False).logits.square().mean().backward()
    expected = {name: value.grad for name, value in language.named_parameters()}
    for options in (None, {"use_reentrant": True}, {"use_reentrant": False}):
        if options is not None:
            model.gradient_checkpointing_enable(options)
            assert model.language_model.is_gradient_checkpointing
        model.zero_grad()
        model(pixels, IDS).logits.square().mean().backward()
        made = {name: value.grad for name, value in model.language_model.named_parameters()}
        assert made.keys() == expected.keys()
        assert all(torch.allclose(made[name], expected[name], atol=1e-6) for name in made)


def test_an_adapter_on_a_part_is_the_adapter_on_the_real_class(tmp_path):
    peft = pytest.importorskip("peft")
    language, vision = chat(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(nn.ModuleDict({"language_model": language, "vision": vision}), config)
    adapted.save_pretrained(tmp_path / "adapter")
    pixels = torch.randn(2, 3, 12)
    with torch.no_grad():
        embeds = torch.cat([vision(pixels), language.get_input_embeddings()(IDS)[:, 3:]], dim=1)
        expected = language(inputs_embeds=embeds, use_cache=False).logits
        for merge in (False, True):
            model = load(tmp_path / "base", adapter=tmp_path / "adapter", merge=merge)
            assert torch.allclose(model(pixels, IDS).logits, expected, atol=1e-5)


def test_a_model_with_parts_is_pickled_and_saved(tmp_path):
    language, _ = chat(tmp_path / "repo")
    model = load(tmp_path / "repo")
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is type(model)
    same = zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in same)
    torch.save(model.language_model, tmp_path / "part")
    code = f"import torch; print(type(torch.load({str(tmp_path / 'part')!r}, weights_only=False)).__name__)"
    assert run_python(code).stdout.strip() == "Qwen2ForCausalLM"
    shardload.save(model, tmp_path / "saved")
    saved = load(tmp_path / "saved")
    assert torch.equal(saved.language_model.lm_head.weight, language.lm_head.weight)


def test_two_repos_of_two_releases_and_threads_share_one_process(tmp_path):
    """The one is written for 4.44, with its own loops, the other for 4.37; neither sees what the other registers."""
    chat(tmp_path / "chat")
    settings = {
        "model_type": "embed",
        "text_config": {"model_type": "both_ways", "sliding_window": None, **TEXT},
    }
    folders = [tmp_path / "embed", tmp_path / "other"]
    for folder in folders:
        changed = EMBED if folder is folders[0] else EMBED.replace("is_causal = False", "is_causal = True")
        write_repo(folder, changed, ("EmbedConfig", "Embed"), {**settings, "transformers_version": "4.44.0"})
        stored(folder, embedding_model=filled(transformers.MistralModel(transformers.MistralConfig(**TEXT))))
    with ThreadPoolExecutor(6) as pool:
        models = list(pool.map(load, [tmp_path / "chat", *folders] * 4))
    own = {id(type(model)) for model in models}
    assert len(own) == 3
    one, other = models[1], models[2]
    assert type(one.embedding_model) is not type(other.embedding_model)
    assert type(one.embedding_model).__mro__[1] is type(other.embedding_model).__mro__[1]
    assert [m.embedding_model.layers[0].self_attn.is_causal for m in (one, other)] == [False, True]


def test_the_code_hash_covers_the_librarys_files(tmp_path, monkeypatch):
    chat(tmp_path)
    code = own_code(*_source(tmp_path))
    assert "models.qwen2.modeling_qwen2" in asked_parts(file.content for file in code.files)
    before = code.sha256("parts")
    assert before not in (code.sha256("shim"), code.sha256("transformers"))
    real = model_files.read
    changed = {"models.qwen2.modeling_qwen2": b"# changed\n"}
    monkeypatch.setattr(model_files, "read", lambda module: real(module) + changed.get(module, b""))
    assert code.sha256("parts") != before


def _source(folder):
    source, _ = find_source(folder)
    return source, read_config(source)


def test_code_that_parts_fail_is_served_by_the_whole_library(tmp_path):
    seen = "self.vision = nn.Linear"
    code = CHAT.replace(seen, f"self.get_experts_implementation()\n        {seen}")
    if not hasattr(transformers.PreTrainedModel, "get_experts_implementation"):
        pytest.skip("the library of this release has no such method either")
    write_repo(tmp_path, code, ("ChatConfig", "Chat"), {"model_type": "chat", "llm_config": TEXT})
    language = filled(transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**TEXT)))
    stored(tmp_path, language_model=language, vision=nn.Linear(12, 32))
    model = shardload.from_pretrained(tmp_path, trust_remote_code=True)
    assert report_of(model).remote_base == "transformers"
    assert "the installed transformers" in str(report_of(model))


@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM", "Qwen2ForCausalLM", "MixtralForCausalLM", "BertForMaskedLM"]
)
def test_a_class_of_the_librarys_own_is_a_part_by_choice(tmp_path, name):
    kind = getattr(transformers, name)
    real = filled(kind(kind.config_class(**{**TEXT, "tie_word_embeddings": name == "BertForMaskedLM"})))
    real.save_pretrained(tmp_path)
    made = shardload.from_pretrained(tmp_path, remote_base="parts", dtype="stored")
    assert report_of(made).remote_base == "parts"
    assert (
        f"{name} (transformers {transformers.__version__}, its file run as a part)"
        in report_of(made).class_from
    )
    assert not isinstance(made, transformers.PreTrainedModel)
    with torch.no_grad():
        assert torch.equal(made(IDS, attention_mask=PADDED).logits, real(IDS, attention_mask=PADDED).logits)
    shardload.save(made, tmp_path / "saved")
    again = kind.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in real.state_dict().items())


def test_the_report_has_the_hash_of_each_file_that_was_found_while_the_code_ran(tmp_path):
    chat(tmp_path / "early")
    chat(tmp_path / "late")
    late = "LATE = getattr(transformers, 'Bert' + 'Config'), transformers.AutoConfig.for_model('vit')"
    (tmp_path / "late" / "modeling_own.py").write_text(f"{CHAT}\nimport transformers\n{late}\n")
    reports = [report_of(load(tmp_path / name)) for name in ("late", "early", "late")]
    found = {f"models.{name}.configuration_{name}" for name in ("bert", "vit")}
    assert reports[0].parts == reports[2].parts
    assert reports[0].parts.keys() - reports[1].parts.keys() >= found
    assert reports[1].parts.items() <= reports[0].parts.items()
    assert found.isdisjoint(reports[1].parts)
    assert "masking_utils" in reports[1].parts
    assert f"({len(reports[1].parts)} of its files)" in str(reports[1])
    for name, report in zip(("late", "early"), reports, strict=False):
        source = find_source(tmp_path / name)[0]
        before = library_files(source, read_config(source))
        assert before
        assert before.items() <= report.parts.items()
        assert found.isdisjoint(before)
    for module, sha256 in reports[0].parts.items():
        assert sha256 == hashlib.sha256(installed().file(module).read_bytes()).hexdigest()
        assert {"module": module, "sha256": sha256} in reports[0].to_dict()["parts"]
