"""E-CONFIG: sizes are read from the shapes of both sides, and a field of the config is named by its value."""

from __future__ import annotations

import pytest

from shardload.diagnosis import diagnose, sizes
from shardload.diagnosis.config_fields import explaining
from shardload.diagnosis.finding import Case
from shardload.diagnosis.pairing.key_family import families_of
from shardload.diagnosis.sizes import SizesRule, infer_sizes
from shardload.keymap import KeyMap
from tests.diagnosis.headers import case_of, refs
from tests.diagnosis.key_sets import SIZES, key_set

CONFIG = {"hidden_size": 16, "intermediate_size": 44, "vocab_size": 60, "num_local_experts": 4, "n_layers": 2}


@pytest.mark.parametrize("name", ["decoder", "two towers", "experts"])
def test_sizes_are_those_that_the_keys_were_made_with(name):
    found = infer_sizes(families_of(key_set(name, 2)[0]))
    assert found["hidden size"] == SIZES["d"]
    if name != "experts":
        assert found["feed-forward size"] == SIZES["f"]
    else:
        assert found["number of experts"] == SIZES["e"]


def other(monkeypatch, **sizes):
    with monkeypatch.context() as patch:
        for letter, size in sizes.items():
            patch.setitem(SIZES, letter, size)
        return key_set("decoder", 2)[0]


@pytest.mark.parametrize(
    ("letter", "size", "what", "cure"),
    [
        ("f", 64, "feed-forward size", "intermediate_size to 64"),
        ("d", 32, "hidden size", "hidden_size to 32"),
    ],
)
def test_a_size_that_differs_is_said_with_its_field(monkeypatch, letter, size, what, cure):
    case = case_of(other(monkeypatch, **{letter: size}), key_set("decoder", 2)[0], config=CONFIG)
    (finding,) = SizesRule().examine(case)
    assert finding.code == "E-CONFIG"
    (line,) = finding.evidence
    assert line.startswith(f"{what}: {size} in the checkpoint, {SIZES[letter]} in the model")
    assert line.endswith(f"config.json says {cure.partition(' ')[0]} = {SIZES[letter]}")
    assert cure in str(finding.cure)
    assert finding.explained == len(case.shape_pairs)
    assert finding.nbytes == case.nbytes(case.shape_mismatches)


def test_no_finding_where_shapes_agree_or_only_the_vocabulary_differs(monkeypatch):
    shapes = key_set("decoder", 2)[0]
    assert SizesRule().examine(case_of(shapes, shapes, config=CONFIG)) == ()
    assert SizesRule().examine(case_of(other(monkeypatch, v=61), shapes, config=CONFIG)) == ()


def test_a_shape_is_compared_with_the_slot_that_a_rename_leads_to(monkeypatch):
    wanted = key_set("decoder", 2)[0]
    stored = {f"module.{key}": shape for key, shape in other(monkeypatch, f=64).items()}
    pairs = case_of(stored, wanted).shape_pairs
    assert {pair.key.split(".")[-2] for pair in pairs} == {"gate_proj", "up_proj", "down_proj"}
    assert all(pair.model == wanted[pair.key] != pair.stored for pair in pairs)


def stacked(experts: int, layers: int = 2):
    """The keys of experts in one tensor, as a key map makes them of numbered ones, and of their routers."""
    one = {f"layers.{n}.experts.{e}.w2": (4, 6) for n in range(layers) for e in range(experts)}
    mapped = KeyMap().stack("layers.{}.experts.{n}.w2", "layers.{}.experts.down_proj").map_headers(refs(one))
    return mapped.tensors, {f"layers.{n}.experts.down_proj": (4, 4, 6) for n in range(layers)}


def test_an_expert_that_is_not_stored_is_no_number_of_the_config():
    config = {"num_experts": 4}
    three, wanted = stacked(3)
    four, _ = stacked(4)
    some = {**three, "layers.0.experts.down_proj": four["layers.0.experts.down_proj"]}
    routers = {f"layers.{n}.gate.weight": (4, 5) for n in range(2)}
    for stored, slots in ((some, wanted), ({**three, **refs(routers)}, wanted | routers)):
        (finding,) = diagnose(Case.of(slots, stored, config))
        assert finding.code == "E-LAYERS"
        assert "number 3 of 4 are not stored" in finding.cause
    (finding,) = diagnose(Case.of(wanted, three, config))
    assert (finding.code, finding.cure.parts[0]) == ("E-CONFIG", "set num_experts to 3 in config.json")


def test_fields_are_weighed_once_a_template(monkeypatch):
    """Each of many keys held against each of many fields took minutes."""
    weighed = []
    monkeypatch.setattr(sizes, "explaining", lambda *asked: weighed.append(asked) or explaining(*asked))
    wanted = {f"layers.{n}.mlp.down_proj.weight": (4, 6) for n in range(500)}
    stored = dict.fromkeys(wanted, (4, 9))
    (finding,) = SizesRule().examine(case_of(stored, wanted, config={"intermediate_size": 6}))
    assert finding.cure.parts[0] == "set intermediate_size to 9 in config.json"
    assert len(weighed) <= 2


def test_the_field_that_config_json_has_is_the_one_that_is_quoted():
    labels = {"id2label": {"0": "a", "1": "b", "2": "c"}}
    for config, says in ((labels, "id2label has 3 labels"), ({**labels, "num_labels": 3}, "num_labels = 3")):
        (finding,) = SizesRule().examine(
            case_of({"classifier.weight": (5, 4)}, {"classifier.weight": (3, 4)}, config=config)
        )
        assert finding.evidence[0].endswith(f"config.json says {says}")
        assert finding.cure.parts[0] == "set num_labels to 5 in config.json"
