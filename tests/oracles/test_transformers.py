"""Models of transformers: its own loader is the oracle; shardload builds the class that `architectures` names."""

from __future__ import annotations

import pytest
import torch

from shardload import (
    build_shell,
    fill,
    from_pretrained,
    open_checkpoint,
    report_of,
    save,
)
from tests.tiny import assert_same_state, meta_names, write_checkpoint

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64}

FAMILIES = {
    "llama": ("LlamaForCausalLM", {**SMALL, **HEADS, "tie_word_embeddings": False}),
    "llama, tied": ("LlamaForCausalLM", {**SMALL, **HEADS, "tie_word_embeddings": True}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, **SPECIAL}),
    "qwen2": ("Qwen2ForCausalLM", {**SMALL, **HEADS}),
    "bloom": ("BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, **SPECIAL}),
    "glm": ("GlmForCausalLM", {**SMALL, **HEADS, **SPECIAL, "head_dim": 8}),
    "t5": ("T5ForConditionalGeneration", {**T5, "decoder_start_token_id": 0}),
    "t5, untied": ("T5ForConditionalGeneration", {**T5, "decoder_start_token_id": 0, "tie_word_embeddings": False}),
    "bert": ("BertForMaskedLM", {**SMALL, "num_attention_heads": 4, "max_position_embeddings": 32}),
    "mamba": ("MambaForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "state_size": 4}),
}  # fmt: skip

MIXTRAL = ("MixtralForCausalLM", {**SMALL, **HEADS, "num_local_experts": 4})
IDS = torch.tensor([[3, 17, 42, 5], [60, 2, 9, 33]])


def made(name, settings):
    """Make a model with weights that its constructor would not give."""
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model = cls(cls.config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


def logits(model):
    more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=IDS, **more).logits


def ties(model):
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(names.values())


def assert_same_model(ours, theirs):
    assert_same_state(ours, theirs)
    assert type(ours) is type(theirs)
    buffers = dict(theirs.named_buffers())
    assert dict(ours.named_buffers()).keys() == buffers.keys()
    for name, buffer in ours.named_buffers():
        assert buffer.dtype == buffers[name].dtype, name
        assert torch.equal(buffer, buffers[name]), name
    assert ties(ours) == ties(theirs)
    assert meta_names(ours) == []
    assert not ours.training
    assert torch.equal(logits(ours), logits(theirs))


@pytest.fixture(params=FAMILIES, scope="module")
def family(request, tmp_path_factory):
    """A folder that save_pretrained wrote in small shards, and what transformers loads from it."""
    name, settings = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("family")
    made(name, settings).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder, getattr(transformers, name).from_pretrained(folder).eval()


def test_the_same_model_as_transformers_loads(family):
    folder, oracle = family
    model = from_pretrained(folder)
    assert_same_model(model, oracle)
    report = report_of(model)
    assert report.ok
    assert f"{type(oracle).__qualname__} (transformers {transformers.__version__})" in report.class_from
    assert report.remote_base is None


def test_the_same_from_bin_shards(family, tmp_path):
    folder, oracle = family
    # Tied names share a storage in the pickle, as torch.save leaves them.
    write_checkpoint(tmp_path, oracle.state_dict(), kind="bin", shards=3)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert_same_model(from_pretrained(tmp_path), oracle)


def test_the_same_in_another_dtype(family):
    folder, oracle = family
    theirs = type(oracle).from_pretrained(folder, dtype=torch.bfloat16).eval()
    ours = from_pretrained(folder, dtype="bfloat16")
    for key, value in theirs.state_dict().items():
        if value.dtype == torch.bfloat16:
            assert torch.equal(ours.state_dict()[key], value), key
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert ours.config.dtype == torch.bfloat16
    assert meta_names(ours) == []


def test_what_is_saved_is_loaded_by_transformers(family, tmp_path):
    folder, oracle = family
    files = save(from_pretrained(folder), tmp_path / "saved", max_shard_size="30KB")
    assert len(files) > 2
    assert_same_model(type(oracle).from_pretrained(tmp_path / "saved").eval(), oracle)
    assert_same_model(from_pretrained(tmp_path / "saved"), oracle)


def test_the_generation_config(family):
    folder, oracle = family
    if not oracle.can_generate():
        pytest.skip("it does not generate")
    assert from_pretrained(folder).generation_config.to_dict() == oracle.generation_config.to_dict()


def test_generate(tmp_path):
    name, settings = FAMILIES["llama"]
    made(name, settings).save_pretrained(tmp_path)
    oracle = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    options = {
        "max_new_tokens": 5,
        "do_sample": False,
        "attention_mask": torch.ones_like(IDS),
        "pad_token_id": 0,
    }
    assert torch.equal(from_pretrained(tmp_path).generate(IDS, **options), oracle.generate(IDS, **options))


def test_auto_class_picks_a_class_of_the_model_type(tmp_path):
    name, settings = FAMILIES["llama"]
    made(name, settings).model.save_pretrained(tmp_path)
    model = from_pretrained(tmp_path, auto_class="AutoModel")
    assert type(model) is transformers.LlamaModel
    assert_same_state(model, transformers.LlamaModel.from_pretrained(tmp_path))


def test_a_class_of_transformers_given_by_the_caller(tmp_path):
    name, settings = FAMILIES["gpt2"]
    made(name, settings).save_pretrained(tmp_path)
    model = from_pretrained(tmp_path, model_class=transformers.GPT2LMHeadModel)
    assert isinstance(model.config, transformers.GPT2Config)
    assert_same_model(model, transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval())


def test_a_given_config_with_another_dtype_stays_as_it_was(tmp_path):
    name, settings = FAMILIES["llama"]
    model = made(name, settings)
    model.save_pretrained(tmp_path)
    config = transformers.LlamaConfig(**settings)
    before = config.to_dict()
    ours = from_pretrained(tmp_path, config=config, dtype="float16")
    assert ours.config.dtype == torch.float16
    assert config.to_dict() == before


def test_experts_under_the_names_of_the_class(tmp_path):
    """The class holds all experts of a layer in one parameter."""
    oracle = made(*MIXTRAL)
    config = {**oracle.config.to_dict(), "architectures": [MIXTRAL[0]]}
    write_checkpoint(tmp_path, oracle.state_dict(), config=config)
    assert_same_model(from_pretrained(tmp_path), oracle)


def test_what_transformers_converts_is_converted(tmp_path):
    """save_pretrained writes an expert a tensor, in several shards; the loader fuses them."""
    oracle = made(*MIXTRAL)
    oracle.save_pretrained(tmp_path, max_shard_size="20KB")
    assert_same_model(from_pretrained(tmp_path), oracle)


def test_what_transformers_would_rename_a_key_map_renames(tmp_path):
    settings = {**SMALL, "num_attention_heads": 4, **SPECIAL}
    made("GPTNeoXForCausalLM", settings).save_pretrained(tmp_path, max_shard_size="20KB")
    oracle = transformers.GPTNeoXForCausalLM.from_pretrained(tmp_path).eval()
    stored = open_checkpoint(tmp_path).tensors
    key_map = {key: "lm_head.weight" for key in stored if key == "embed_out.weight"}
    assert_same_model(from_pretrained(tmp_path, key_map=key_map), oracle)


def test_a_model_with_real_weights_is_filled(family):
    folder, oracle = family
    torch.manual_seed(9)
    model = type(oracle)(oracle.config).eval()
    fill(model, open_checkpoint(folder))
    assert_same_model(model, oracle)


def test_a_shell_takes_no_memory_and_draws_no_random_number(family):
    _, oracle = family
    before = torch.random.get_rng_state()
    shell = build_shell(lambda: type(oracle)(oracle.config))
    if not isinstance(oracle, transformers.MambaForCausalLM):
        # Mamba's initialiser asks for random numbers on its weight's device, which a constructor is told is the CPU.
        assert torch.equal(before, torch.random.get_rng_state())
    assert all(parameter.is_meta for parameter in shell.model.parameters())
    assert not any(buffer.is_meta for buffer in shell.model.buffers())
