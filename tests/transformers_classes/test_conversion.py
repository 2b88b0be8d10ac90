"""Checkpoints of transformers' own classes: loaded and written as transformers does it; the oracle is transformers."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import shardload
from shardload import (
    KeyMap,
    MismatchError,
    build_shell,
    check,
    fill,
    open_checkpoint,
    plan_load,
    report_of,
    save,
)
from shardload.model.shell import modules_of
from shardload.transformers_classes import conversions
from shardload.transformers_classes.conversion import ClassConversion

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.core_model_loading")

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64,
}  # fmt: skip


def mixtral():
    config = transformers.MixtralConfig(**SIZES, num_local_experts=12, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM(config)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A Mixtral as it is published: each expert's matrices stored apart; twelve, so that numbers sort as numbers."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mixtral")
    mixtral().save_pretrained(folder)
    assert "model.layers.1.block_sparse_moe.experts.11.w3.weight" in open_checkpoint(folder).tensors
    return folder


def same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_experts_that_are_stored_apart_are_joined_as_transformers_joins_them(published):
    model = shardload.from_pretrained(published)
    same(model, transformers.AutoModelForCausalLM.from_pretrained(published))
    assert report_of(model).stated.anonymous == sum(
        parameter.nbytes for name, parameter in model.named_parameters() if "experts" in name
    )


def test_fill_check_and_plan_see_the_same_as_from_pretrained(published):
    checkpoint = open_checkpoint(published)
    shell = build_shell(mixtral)
    assert check(shell, checkpoint).ok
    planned = plan_load(checkpoint, shell=shell)
    assert fill(shell, checkpoint, max_memory=planned.peak_anon).stated == planned.memory
    same(shell.model, shardload.from_pretrained(published))
    built = mixtral()  # a real module that exists
    fill(built, checkpoint)
    same(built, shell.model)


def test_a_model_is_written_as_it_was_read(published, tmp_path):
    model = shardload.from_pretrained(published)
    save(model, tmp_path / "ours")
    ours, theirs = (
        load_file(tmp_path / "ours" / "model.safetensors"),
        load_file(published / "model.safetensors"),
    )
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_an_empty_map_writes_the_names_of_the_model(published, tmp_path):
    model = shardload.from_pretrained(published)
    save(model, tmp_path / "own", key_map={})
    assert open_checkpoint(tmp_path / "own").tensors.keys() == model.state_dict().keys()
    same(shardload.from_pretrained(tmp_path / "own"), model)  # and such a file loads too


def test_a_model_that_was_never_loaded_is_written_as_it_is_published(published, tmp_path):
    torch.manual_seed(0)
    save(mixtral(), tmp_path / "ours")
    assert open_checkpoint(tmp_path / "ours").tensors.keys() == open_checkpoint(published).tensors.keys()
    assert open_checkpoint(tmp_path / "ours").config["architectures"] == ["MixtralForCausalLM"]
    same(shardload.from_pretrained(tmp_path / "ours"), shardload.from_pretrained(published))


@pytest.mark.parametrize("name", ["MixtralModel", "MixtralForSequenceClassification"])
def test_a_model_of_another_class_than_its_checkpoint_is_written_as_its_own(published, tmp_path, name):
    kind = getattr(transformers, name)
    model = shardload.from_pretrained(
        published, model_class=kind, allow_missing="head", allow_unexpected="head"
    )
    save(model, tmp_path / "ours")
    kind.from_pretrained(published).save_pretrained(tmp_path / "theirs")
    ours, theirs = (open_checkpoint(tmp_path / folder) for folder in ("ours", "theirs"))
    assert ours.config["architectures"] == theirs.config["architectures"] == [name]
    assert ours.tensors.keys() == theirs.tensors.keys()
    again = shardload.from_pretrained(tmp_path / "ours")
    assert type(again) is kind
    same(again, model)


def test_the_callers_map_comes_before_that_of_the_class(published, tmp_path):
    state = {f"wrapped.{name}": tensor for name, tensor in load_file(published / "model.safetensors").items()}
    save_to = tmp_path / "wrapped"
    save_to.mkdir()
    (save_to / "config.json").write_bytes((published / "config.json").read_bytes())
    torch.save(state, save_to / "pytorch_model.bin")
    key_map = {"wrapped.{...}": "{...}"}
    model = shardload.from_pretrained(save_to, key_map=key_map)
    same(model, shardload.from_pretrained(published))
    save(model, tmp_path / "again", key_map=key_map)
    assert open_checkpoint(tmp_path / "again").tensors.keys() == state.keys()
    with pytest.raises(MismatchError, match="wrapped"):
        shardload.from_pretrained(save_to)


def test_an_operation_that_refuses_its_tensors_is_named(published, tmp_path):
    state = load_file(published / "model.safetensors")
    state["model.layers.0.block_sparse_moe.experts.3.w2.weight"] = torch.ones(5, 5)
    save_to = tmp_path / "odd"
    save_to.mkdir()
    (save_to / "config.json").write_bytes((published / "config.json").read_bytes())
    torch.save(state, save_to / "pytorch_model.bin")
    with pytest.raises(MismatchError) as caught:
        shardload.from_pretrained(save_to)
    assert "MergeModulelist of transformers refuses: tensors of shapes [32, 48] and [5, 5] can't be" in str(
        caught.value
    )
    assert {fault.stored_key for fault in caught.value.report.faults} - {None} == {
        f"model.layers.0.block_sparse_moe.experts.{n}.w2.weight" for n in range(12)
    }


EXPERTS = "model.layers.0.block_sparse_moe.experts."
FUSED = "model.layers.0.mlp.experts.down_proj"


def renumbered(name: str, last: int) -> str:
    return name.replace(f"{EXPERTS}11.", f"{EXPERTS}{last}.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda name: renumbered(name, 14),
            r"experts\.11\.w1\.weight, .*13\.w1\.weight of 0 to 14 are missing",
        ),
        (
            lambda name: re.sub(r"experts\.(\d+)", lambda n: f"experts.{int(n[1]) + 1}", name),
            r"experts\.0\.w2\.weight",
        ),
        (
            lambda name: None if name.startswith(f"{EXPERTS}2.") else name,
            r"experts\.2\.w2\.weight of 0 to 11 is",
        ),
        (
            lambda name: renumbered(name, 12) if "w3" in name else name,
            r"experts\.12\.w1\.weight of 0 to 12 is missing",
        ),
        (
            lambda name: None if "experts" in name and "w3" in name else name,
            r"stored for experts\.\*\.w3\.weight",
        ),
        (
            lambda name: None if f"{EXPERTS}11.w3" in name else name,
            r"experts\.11\.w3\.weight of 0 to 11 is missing",
        ),
        (lambda name: renumbered(name, "07"), r"07\.w1\.weight and .*\.7\.w1\.weight have one number"),
    ],
)
def test_a_list_with_a_gap_is_refused_though_transformers_closes_it(published, tmp_path, change, message):
    state = load_file(published / "model.safetensors")
    folder = stored_as(tmp_path, published, {change(name): tensor for name, tensor in state.items()})
    with pytest.raises(MismatchError, match=message):
        shardload.from_pretrained(folder)


def test_padded_numbers_are_the_same_numbers(published, tmp_path):
    state = load_file(published / "model.safetensors")
    padded = {re.sub(r"experts\.(\d)\.", r"experts.0\1.", name): tensor for name, tensor in state.items()}
    same(
        shardload.from_pretrained(stored_as(tmp_path, published, padded)),
        shardload.from_pretrained(published),
    )


def test_what_is_stored_in_parts_and_whole_is_refused_by_both_names(published, tmp_path):
    state = load_file(published / "model.safetensors")
    whole = shardload.from_pretrained(published).state_dict()[FUSED]
    folder = stored_as(tmp_path, published, {**state, FUSED: whole * 2})
    with pytest.raises(MismatchError) as caught:
        shardload.from_pretrained(folder)
    assert f"{EXPERTS}0.w2.weight is a part of {FUSED}, which is stored too" in str(caught.value)


def test_of_an_old_and_a_new_name_the_new_one_holds(published, tmp_path):
    state = load_file(published / "model.safetensors")
    new = "model.layers.0.mlp.gate.weight"
    folder = stored_as(tmp_path, published, {**state, new: torch.zeros(12, 32)})
    with pytest.raises(MismatchError, match="1 unexpected") as caught:
        shardload.from_pretrained(folder)
    assert [fault.stored_key for fault in caught.value.report.faults] == [
        "model.layers.0.block_sparse_moe.gate.weight"
    ]


def stored_as(folder, published, state):
    (folder / "config.json").write_bytes((published / "config.json").read_bytes())
    kept = {name: tensor.clone() for name, tensor in state.items() if name is not None}
    save_file(kept, folder / "model.safetensors")
    return folder


def test_a_map_with_the_classes_rules_says_that_no_file_can_hold_it(published):
    shell = build_shell(mixtral)
    rules = conversions(shell.tree.kinds, modules_of(shell.model), shell.slots)
    assert [type(rule) for rule in rules] == [ClassConversion]
    with pytest.raises(shardload.UsageError, match="can't be written"):
        KeyMap(rules).to_json()
    mapped = KeyMap(rules).map_headers(open_checkpoint(published).tensors)
    assert {name: tensor.shape for name, tensor in mapped.tensors.items()} == {
        name: slot.shape for name, slot in shell.slots.items() if slot.is_stored
    }


def test_models_of_other_libraries_have_no_such_rules():
    shell = build_shell(lambda: torch.nn.Linear(2, 2))
    assert conversions(shell.tree.kinds, modules_of(shell.model), shell.slots) == ()


def test_experts_of_two_dtypes_are_joined_in_the_wider_one_and_noted(published, tmp_path):
    """One expert was left in float32, as some quantisers and merges leave them."""
    state = {key: value.bfloat16() for key, value in load_file(published / "model.safetensors").items()}
    odd = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    state[odd] = load_file(published / "model.safetensors")[odd]
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((published / "config.json").read_text())
    model = shardload.from_pretrained(tmp_path, dtype="stored")
    joined = "model.layers.1.mlp.experts.down_proj"
    assert torch.equal(model.state_dict()[joined][3], state[odd])
    note = f"{joined}: joined in float32 from parts that are stored in bfloat16 and float32"
    assert note in report_of(model).notes
    assert not any(
        "joined in float32" in each for each in report_of(shardload.from_pretrained(published)).notes
    )


def test_a_table_that_every_layer_held_is_the_models_own(tmp_path):
    config = transformers.EsmConfig(
        hidden_size=16, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2, vocab_size=33,
        max_position_embeddings=40, pad_token_id=1, mask_token_id=32, position_embedding_type="rotary",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.EsmForMaskedLM(config).eval()
    model.save_pretrained(tmp_path)
    state = {name: tensor for name, tensor in model.state_dict().items() if "inv_freq" not in name}
    state = {name: tensor.clone() for name, tensor in state.items() if name != "lm_head.decoder.weight"}
    for layer in range(3):  # as releases of 4 wrote it
        name = f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
        state[name] = model.esm.rotary_embeddings.inv_freq * 2
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    expected = transformers.EsmForMaskedLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(2, 14).reshape(2, 6)
    for base in ("auto", "parts"):
        made = shardload.from_pretrained(tmp_path, remote_base=base).eval()
        assert torch.equal(made.esm.rotary_embeddings.inv_freq, expected.esm.rotary_embeddings.inv_freq)
        assert torch.equal(made(ids).logits, expected(ids).logits)
