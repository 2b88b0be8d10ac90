"""Rules of a class said literally: a file of them makes the same tensors of the same checkpoint."""

from __future__ import annotations

import pytest
import torch

import shardload
from shardload import KeyMap, NoInverseError, UsageError, build_shell, examine, fill, open_checkpoint
from shardload.keymap.literal import by_template, literal_rules
from shardload.keymap.rename import Rename
from shardload.keymap.traced import TracedTensor
from shardload.model.shell import modules_of
from shardload.tensor_ref import Span, TensorRef
from shardload.transformers_classes import conversions

SHAPES = {
    "q": (8, 6),
    "k": (4, 6),
    "v": (4, 6),
    "layers.0.w": (3, 5),
    "layers.1.w": (3, 5),
    "layers.2.w": (3, 5),
}


def stored(shapes=SHAPES):
    made = {}
    for name, shape in shapes.items():
        made[name] = TensorRef(name, "F32", shape, "", Span(0, 4 * torch.Size(shape).numel()))
    return made


def said(made, shapes=SHAPES):
    """Return the operations that make these of the stored tensors, drops left out, and what they give."""
    refs = stored(shapes)

    def apply(rules):
        return KeyMap(rules).map_headers(refs).tensors

    rules = literal_rules(refs, made, apply)
    return [rule.op for rule in rules if rule.op != "drop"], apply(rules)


W = [f"layers.{number}.w" for number in range(3)]
MADE = {
    "renamed": (lambda t: {"a": t["q"]}, ["rename"]),
    "swapped": (lambda t: {"q": t["k"], "k": t["q"]}, ["rename"] * 3),
    "joined": (lambda t: {"qkv": torch.cat([t["q"], t["k"], t["v"]])}, ["cat"]),
    "stacked": (lambda t: {"w": torch.stack([t[name] for name in W])}, ["stack"]),
    "stacked in another order": (
        lambda t: {"w": torch.stack([t[name] for name in reversed(W)], 1)},
        ["rename"] * 3 + ["stack"],
    ),
    "pairs stacked": (
        lambda t: {"w": torch.cat([torch.stack([t["k"], t["v"]]), torch.stack([t["v"], t["k"]])], 1)},
        None,
    ),
    "stacks joined": (
        lambda t: {"w": torch.cat([torch.stack([t["k"]]), torch.stack([t["v"]])], 1)},
        ["rename", "rename", "stack", "stack", "cat"],
    ),
    "cut": (
        lambda t: dict(zip("ab", t["q"].split([5, 3]), strict=True)),
        ["split"] + ["rename"] * 2,
    ),
    "cut across": (
        lambda t: dict(zip("ab", t["q"].split([5, 1], 1), strict=True)),
        ["split"] + ["rename"] * 2,
    ),
    "taken apart": (
        lambda t: dict(zip("abcd", t["k"].unbind(), strict=True)),
        ["unstack"] + ["rename"] * 4,
    ),
    "turned": (lambda t: {"q": t["q"].t(), "k": t["k"]}, ["transpose"]),
    "turned and joined": (
        lambda t: {"w": torch.cat([t["k"].t(), t["v"].t()], 1)},
        ["transpose"] * 2 + ["cat"],
    ),
    "every other row": (lambda t: {"q": t["q"].view(2, 4, 6).transpose(0, 1).reshape(8, 6)}, None),
    "half of one": (lambda t: {"q": t["q"][:4]}, None),
}


@pytest.mark.parametrize("kind", MADE)
def test_what_cuts_turns_and_joins_can_say_is_said_and_nothing_else(kind):
    make, wanted = MADE[kind]
    made = {
        key: tensor.ref
        for key, tensor in make({name: TracedTensor(ref) for name, ref in stored().items()}).items()
    }
    if wanted is None:
        with pytest.raises(NoInverseError, match="no rule of a map's file can say"):
            said(made)
        return
    ops, got = said(made)
    assert ops == wanted
    assert {key: tensor.shape for key, tensor in got.items()} == {key: ref.shape for key, ref in made.items()}


def test_rules_that_differ_in_one_number_are_one():
    rules = [Rename(f"h.{number}.w.{number}", f"layers.{number}.w.{number}") for number in range(3)]
    assert by_template([*rules[:2], Rename("h.7.b", "layers.7.b")]) == (
        Rename("h.0.w.0", "layers.0.w.0"),
        Rename("h.1.w.1", "layers.1.w.1"),
        Rename("h.7.b", "layers.7.b"),
    )
    assert by_template([Rename(f"h.{number}.w", f"layers.{number}.w") for number in range(3)]) == (
        Rename("h.{}.w", "layers.{}.w"),
    )


transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.core_model_loading")


def mixtral():
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 64, "num_local_experts": 12, "num_experts_per_tok": 2,
    }  # fmt: skip
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes))


def test_a_map_of_a_class_is_written_read_and_loads_equal_without_the_class(tmp_path):
    torch.manual_seed(0)
    mixtral().save_pretrained(tmp_path / "base")
    found = examine(tmp_path / "base")
    assert (found.exit_code, found.findings) == (0, ())
    assert found.lines()[1] == "map: 5 rules for what the class makes of the checkpoint by itself"
    assert sorted(rule.op for rule in found.key_map.rules) == ["cat", "rename", "stack", "stack", "stack"]
    (tmp_path / "map.json").write_text(found.key_map.to_json())
    read = KeyMap.read(tmp_path / "map.json")
    assert read == found.key_map

    wanted = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    shardload.convert(tmp_path / "base", tmp_path / "own", key_map=tmp_path / "map.json")
    got = dict(open_checkpoint(tmp_path / "own").items())
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    shell = build_shell(mixtral)  # the class's own conversion comes after the map, and finds nothing to do
    fill(shell, open_checkpoint(tmp_path / "base"), key_map=read)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in shell.model.state_dict().items())

    back = (
        read.invert()
        .map_headers(read.map_headers(open_checkpoint(tmp_path / "base").tensors).tensors)
        .tensors
    )
    assert back == open_checkpoint(tmp_path / "base").tensors


def test_a_map_that_is_bound_to_no_checkpoint_says_how_it_can_be_written(tmp_path):
    mixtral().save_pretrained(tmp_path)
    model = mixtral()
    rules = conversions(set(map(type, model.modules())), modules_of(model), model.state_dict())
    with pytest.raises(UsageError, match=r"KeyMap\.bind\(checkpoint\.tensors\)"):
        KeyMap(rules).to_json()
    bound = KeyMap().rename("lm_head.weight", "lm_head.weight").bind(open_checkpoint(tmp_path).tensors)
    assert KeyMap(rules).bind(open_checkpoint(tmp_path).tensors).target != bound.target
