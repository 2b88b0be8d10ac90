"""Weights that transformers ties and a checkpoint stores apart; the oracle is transformers."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from shardload import (
    MismatchError,
    build_shell,
    check,
    fill,
    from_pretrained,
    open_checkpoint,
    report_of,
    save,
)
from shardload.transformers_classes.untied import untie
from tests.tiny import write_checkpoint

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.core_model_loading")

T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 64}
BART = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "vocab_size": 64,
}  # fmt: skip
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64,
}  # fmt: skip
MODELS = {
    "T5ForConditionalGeneration": T5,
    "MT5ForConditionalGeneration": T5,
    "UMT5ForConditionalGeneration": T5,
    "LongT5ForConditionalGeneration": T5,
    "T5EncoderModel": T5,
    "BartForConditionalGeneration": BART,
    "LlamaForCausalLM": {**SMALL, "tie_word_embeddings": True},
    "BertForMaskedLM": SMALL,
    "GPT2LMHeadModel": {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 64},
}


def make(name, **more):
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    return cls(cls.config_class(**MODELS[name], **more))


def write(model, folder, values):
    """Write a model without its tied weights, but with `values` by name; return the folder."""
    tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
    state = {name: value.clone() for name, value in model.state_dict().items() if name not in tied}
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    write_checkpoint(folder, {**state, **values}, config=config, shards=1)
    return folder


def parts(model):
    """Return the sets of names that are one tensor."""
    names = {}
    for name, value in model.state_dict(keep_vars=True).items():
        names.setdefault(id(value), set()).add(name)
    return sorted(map(sorted, names.values()))


def assert_same(ours, theirs):
    one, other = ours.state_dict(), theirs.state_dict()
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert parts(ours) == parts(theirs)
    assert ours.all_tied_weights_keys == theirs.all_tied_weights_keys


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(6))
def test_what_is_stored_apart_is_loaded_as_transformers_loads_it(tmp_path, name, seed):
    model, draw = make(name), random.Random(seed)
    state = model.state_dict()
    groups = {}
    for follower, source in model.all_tied_weights_keys.items():
        groups.setdefault(source, [source]).append(follower)
    values = {}
    for names in groups.values():
        stored = names if seed == 0 else draw.sample(names, draw.randint(1, len(names)))
        for number, each in enumerate(stored):
            values[each] = state[each] + (number if seed == 0 else draw.randint(0, 1))
    where = write(model, tmp_path, values)
    assert_same(from_pretrained(where), type(model).from_pretrained(where))


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "LlamaForCausalLM"])
def test_the_report_says_so_and_a_saved_model_comes_back_the_same(tmp_path, name):
    model = make(name)
    head, table = "lm_head.weight", model.all_tied_weights_keys["lm_head.weight"]
    before = model.state_dict()[head]
    where = write(model, tmp_path / "apart", {head: before + 1, table: before})
    loaded = from_pretrained(where)
    assert check(build_shell(lambda: make(name)), open_checkpoint(where)).ok
    assert any("lm_head.weight: its class ties it" in note for note in report_of(loaded).notes)
    assert report_of(loaded).stated.anonymous == 0
    assert report_of(loaded).stated.mapped == sum(p.nbytes for p in loaded.parameters())
    save(loaded, tmp_path / "saved")
    assert {head, table} <= open_checkpoint(tmp_path / "saved").tensors.keys()
    again = from_pretrained(tmp_path / "saved")
    theirs = type(model).from_pretrained(tmp_path / "saved")
    ids = torch.tensor([[1, 2, 3]])
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if loaded.config.is_encoder_decoder else {})}
    assert all(torch.equal(each(**inputs).logits, loaded(**inputs).logits) for each in (again, theirs))
    assert parts(again) == parts(theirs) == parts(loaded)


def test_a_pickle_that_kept_the_ties_of_the_others_is_stated_once(tmp_path):
    model = make("T5ForConditionalGeneration")
    state = {**model.state_dict(), "lm_head.weight": torch.ones(64, 32)}
    config = {**model.config.to_dict(), "architectures": ["T5ForConditionalGeneration"]}
    write_checkpoint(tmp_path, state, kind="bin", shards=1, config=config)
    loaded = from_pretrained(tmp_path)
    assert_same(loaded, type(model).from_pretrained(tmp_path))
    stated = report_of(loaded).stated
    assert (stated.anonymous, stated.mapped) == (0, sum(p.nbytes for p in loaded.parameters()))


def test_a_load_that_fails_leaves_the_model_tied(tmp_path, monkeypatch):
    model = make("T5ForConditionalGeneration")
    values = {"lm_head.weight": torch.ones(64, 32), "shared.weight": torch.zeros(64, 32)}
    checkpoint = open_checkpoint(write(model, tmp_path, values))
    before, keys, kept = parts(model), dict(model.all_tied_weights_keys), model.shared.weight

    def refuse(*_):
        raise RuntimeError("the end of the load")

    with monkeypatch.context() as patched:
        patched.setattr("shardload.loading.fill.finish", refuse)
        with pytest.raises(RuntimeError, match="end of the load"):
            fill(model, checkpoint)
    assert parts(model) == before
    assert model.all_tied_weights_keys == keys
    assert model.lm_head.weight is kept
    fill(model, checkpoint)
    assert torch.equal(model.lm_head.weight, values["lm_head.weight"])
    assert torch.equal(model.decoder.embed_tokens.weight, values["shared.weight"])
    assert model.decoder.embed_tokens.weight is model.shared.weight


def test_any_other_class_keeps_the_error(tmp_path):
    class Own(transformers.LlamaForCausalLM):
        """A class that is not the library's."""

    model = make("LlamaForCausalLM")
    values = {"lm_head.weight": torch.ones(64, 32), "model.embed_tokens.weight": torch.zeros(64, 32)}
    where = write(model, tmp_path / "own", values)
    with pytest.raises(MismatchError, match="one parameter in the model, and differ"):
        from_pretrained(where, model_class=Own)
    with pytest.raises(MismatchError, match="one parameter in the model, and differ"):
        fill(build_shell(lambda: nn.Sequential(make("LlamaForCausalLM"))), _inside(tmp_path / "in", where))


def _inside(folder, where):
    stored = dict(open_checkpoint(where).items())
    return open_checkpoint(write_checkpoint(folder, {f"0.{name}": value for name, value in stored.items()}))


def test_a_module_that_two_names_share_is_not_taken_apart():
    model = make("T5ForConditionalGeneration")
    model.encoder.embed_tokens = model.shared
    shell = build_shell(lambda: model)
    (names,) = shell.ties
    undo = []
    stored = ["shared.weight", "encoder.embed_tokens.weight"]
    assert untie(shell, names, stored, lambda *_: False, undo) == []
    assert undo == []
    assert len(parts(model)) == len(list(model.parameters()))
