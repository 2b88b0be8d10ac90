"""Quantised on load: the bytes and logits of transformers with bitsandbytes; each reads what the other saved."""

from __future__ import annotations

import json

import pytest
import torch

import shardload
from tests.placement.test_quantised import KINDS, same

transformers = pytest.importorskip("transformers")
bitsandbytes = pytest.importorskip("bitsandbytes")
pytest.importorskip("accelerate")

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96,
}  # fmt: skip
IDS = torch.arange(24).view(2, 12)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request, tmp_path_factory):
    where = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=request.param, dtype="bfloat16")
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(where)
    return where


def by_transformers(where, **keywords):
    return transformers.AutoModelForCausalLM.from_pretrained(where, **keywords)


def by_bitsandbytes(weight):
    """Return a packed weight as bitsandbytes itself makes it plain, in float32."""
    functional = bitsandbytes.functional
    if isinstance(weight, bitsandbytes.nn.Int8Params):
        return functional.int8_vectorwise_dequant(weight.data, weight.SCB)
    return functional.dequantize_4bit(weight.data, weight.quant_state).float()


@pytest.mark.filterwarnings("ignore")  # bitsandbytes says that it casts inputs to float16
@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_bytes_and_logits_are_those_of_transformers(folder, tmp_path, kind):
    config = transformers.BitsAndBytesConfig(**KINDS[kind])
    ours = shardload.from_pretrained(folder, quantization_config=config)
    theirs = by_transformers(folder, quantization_config=config)
    same(ours.state_dict(), theirs.state_dict())
    with torch.no_grad():
        logits = ours(IDS).logits
        if kind == "int8":  # 4 bits run by another function of bitsandbytes on some processors
            assert torch.equal(logits, theirs(IDS).logits)
    shardload.save(ours, tmp_path / "ours")
    again = shardload.from_pretrained(tmp_path / "ours")
    same(again.state_dict(), ours.state_dict())
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, logits)
    same(by_transformers(tmp_path / "ours").state_dict(), ours.state_dict())
    by_transformers(folder, quantization_config=config).save_pretrained(tmp_path / "theirs")
    same(shardload.from_pretrained(tmp_path / "theirs").state_dict(), ours.state_dict())
    plain = shardload.from_pretrained(tmp_path / "theirs", dtype="float32")
    assert not hasattr(plain.config, "quantization_config")
    assert type(plain.model.layers[0].mlp.up_proj) is torch.nn.Linear


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_conv1d_is_turned_and_quantised_as_transformers_does_it(tmp_path, kind):
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 32}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(tmp_path / "gpt2")
    config = transformers.BitsAndBytesConfig(**KINDS[kind])
    ours = shardload.from_pretrained(tmp_path / "gpt2", quantization_config=config)
    theirs = by_transformers(tmp_path / "gpt2", quantization_config=config)
    same(ours.state_dict(), theirs.state_dict())
    report = shardload.report_of(ours)
    assert any("8 Linears are quantised" in note for note in report.notes)
    assert report.memory.peak.anon - report.memory.before.anon <= report.stated.peak
    shardload.save(ours, tmp_path / "ours")
    same(shardload.from_pretrained(tmp_path / "ours").state_dict(), ours.state_dict())
    same(by_transformers(tmp_path / "ours").state_dict(), ours.state_dict())
    plain = shardload.from_pretrained(tmp_path / "ours", dtype="float32")
    for name, weight in plain.named_parameters():
        if name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight")):  # one of them is square
            assert torch.equal(weight, by_bitsandbytes(ours.get_parameter(name)).t())
    shardload.convert(tmp_path / "ours", tmp_path / "converted", dtype="float32")
    same(shardload.from_pretrained(tmp_path / "converted").state_dict(), plain.state_dict())
    if kind == "int8":  # 4 bits run by another function of bitsandbytes on some processors
        with torch.no_grad():
            assert torch.equal(ours(IDS).logits, theirs(IDS).logits)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("skip", [None, ["query"]])
def test_transformers_runs_what_was_left_alone_here(tmp_path, kind, skip):
    """It would choose other layers itself: a last layer with a bias, and tied ones where names are given."""
    torch.manual_seed(0)
    sizes = {**SIZES, "num_hidden_layers": 1}
    models = {
        "classes": transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)),
        "tied": transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=True)),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        wanted = {**KINDS[kind], "llm_int8_skip_modules": skip}
        ours = shardload.from_pretrained(tmp_path / name, quantization_config=wanted).eval()
        shardload.save(ours, tmp_path / f"{name}-packed")
        theirs = type(model).from_pretrained(tmp_path / f"{name}-packed").eval()
        modules = [{path: type(each) for path, each in one.named_modules()} for one in (ours, theirs)]
        assert modules[0] == modules[1]
        if kind == "int8":  # 4 bits run by another function of bitsandbytes on some processors
            with torch.no_grad():
                assert torch.equal(ours(IDS).logits, theirs(IDS).logits)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("stored", "asked"), [("int8", "nf4"), ("nf4", "int8"), ("nf4", "fp4")])
def test_a_kind_other_than_the_stored_one_is_undecided_without_a_dtype(tmp_path, stored, asked):
    """It would be made plain in some dtype, and quantised a second time: the caller says in which."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "plain")
    of = {name: transformers.BitsAndBytesConfig(**KINDS[name]) for name in (stored, asked)}
    model = shardload.from_pretrained(tmp_path / "plain", quantization_config=of[stored])
    where = tmp_path / stored
    shardload.save(model, where)
    shell = shardload.build_shell(lambda: transformers.LlamaForCausalLM(config))
    for load in (shardload.from_pretrained, lambda *a, **k: shardload.plan_load(*a, shell=shell, **k)):
        with pytest.raises(shardload.UnsupportedError) as caught:
            load(where, quantization_config=of[asked])
        assert caught.value.code == "E-QUANT"
        assert f"bitsandbytes {stored}, and {asked} is asked for" in caught.value.what
        plain, kept = caught.value.cure.split("; or ")
        assert plain.startswith("pass dtype='bfloat16'")
        assert plain.endswith(f"are made plain in it, and then quantised to {asked}")
        assert kept == f"ask for no quantisation: the weights stay in {stored}, as they are stored"
    same(shardload.from_pretrained(where).state_dict(), model.state_dict())
    same(shardload.from_pretrained(where, quantization_config=of[stored]).state_dict(), model.state_dict())
    anew = shardload.from_pretrained(where, quantization_config=of[asked], dtype="bfloat16")
    shardload.save(shardload.from_pretrained(where, dtype="bfloat16"), tmp_path / "plain again")
    theirs = by_transformers(tmp_path / "plain again", quantization_config=of[asked])
    same(anew.state_dict(), theirs.state_dict())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("asked", [{}, {"load_in_8bit": True}, {"dtype": "float32"}, {"dtype": "stored"}])
def test_a_plan_states_what_a_load_of_a_class_of_the_library_states(tmp_path, asked):
    config = transformers.LlamaConfig(**SIZES, dtype="bfloat16")
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "plain")  # stored in float32
    shell = shardload.build_shell(lambda: transformers.LlamaForCausalLM(config))
    model = shardload.from_pretrained(tmp_path / "plain", **asked)
    planned = shardload.plan_load(tmp_path / "plain", shell=shell, **asked)
    assert planned.memory == shardload.report_of(model).stated
    if "load_in_8bit" in asked:
        shardload.save(model, tmp_path / "eight")
        again = shardload.from_pretrained(tmp_path / "eight")
        assert (
            shardload.plan_load(tmp_path / "eight", shell=shell).memory == shardload.report_of(again).stated
        )


@pytest.mark.filterwarnings("ignore")
def test_the_stored_kind_is_taken_where_the_config_does_not_name_it(folder, tmp_path):
    model = shardload.from_pretrained(folder, load_in_8bit=True)
    shardload.save(model, tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    del told["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(told))
    same(shardload.from_pretrained(tmp_path, load_in_8bit=True).state_dict(), model.state_dict())
    with pytest.raises(shardload.UnsupportedError, match="in which dtype"):
        shardload.from_pretrained(tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["int8", "fp4"])
def test_a_head_that_a_class_renames_is_saved_with_its_parts(tmp_path, kind):
    """GPT-NeoX's checkpoints call lm_head embed_out: transformers writes and reads the parts under that name."""
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(**{**SIZES, "num_hidden_layers": 1})
    transformers.GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "plain")
    asked = transformers.BitsAndBytesConfig(**KINDS[kind], llm_int8_skip_modules=["query_key_value"])
    ours = shardload.from_pretrained(tmp_path / "plain", quantization_config=asked)
    theirs = by_transformers(tmp_path / "plain", quantization_config=asked)
    shardload.save(ours, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    names = [set(shardload.open_checkpoint(tmp_path / who).tensors) for who in ("ours", "theirs")]
    assert names[0] == names[1]
    assert len([name for name in names[0] if name.startswith("embed_out.")]) > 2
    for who in ("ours", "theirs"):
        same(shardload.from_pretrained(tmp_path / who).state_dict(), ours.state_dict())
        same(by_transformers(tmp_path / who).state_dict(), ours.state_dict())
    plain = shardload.from_pretrained(tmp_path / "ours", dtype="float32")
    assert plain.lm_head.weight.dtype == torch.float32
