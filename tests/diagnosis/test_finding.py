"""Case and Finding: which keys are faults, and what a finding of links says."""

from __future__ import annotations

import json

from shardload import KeyMap
from shardload.diagnosis.config_fields import Field
from shardload.diagnosis.finding import Case, Finding, change_of_config
from tests.diagnosis.headers import case_of, keys, refs


def test_the_faults_follow_from_names_and_shapes():
    case = case_of({"a": (1,), "b": (2,), "x": (3,)}, {"a": (1,), "b": (4,), "c": (5,)})
    assert (case.missing, case.unexpected, case.shape_mismatches) == (["c"], ["x"], ["b"])
    assert case.nbytes(["a", "x", "absent"]) == 2 * (1 + 3)


def test_only_what_is_a_fault_is_paired():
    """A load may leave keys out on purpose: they are neither missing nor unexpected, and nothing is made of them."""
    stored, slots = refs({"a.w": (4, 4), "left": (4, 4)}), {"b.w": (4, 4), "right": (4, 4)}
    case = Case(slots, stored, missing=["b.w"], unexpected=["a.w"])
    assert [f.template for f in case.solution.stored] == ["a.w"]
    assert [f.template for f in case.solution.wanted] == ["b.w"]
    assert case.solution.filled == {"b.w"}


def test_a_finding_of_links_counts_keys_bytes_and_rules():
    stored = keys((6, 4), "h.{}.gate_up.weight", 3)
    wanted = keys((3, 4), "h.{}.gate.weight", 3) | keys((3, 4), "h.{}.up.weight", 3)
    case = case_of(stored, wanted)
    links = case.solution.links("split")
    finding = Finding.of_links(case, "E-FUSED", links, "fused", case.solution.cure.of("split"))
    assert (finding.explained, finding.nbytes) == (3, 3 * 24 * 2)
    assert finding.cure == "1 rule of the map"
    assert len(finding.evidence) == 1
    assert finding.confidence == min(link.confidence for link in links)
    assert not finding.unproven


def test_second_names_count_the_names_that_are_made():
    stored = {"model.embed_tokens.weight": (9, 4)}
    case = case_of(stored, {**stored, "lm_head.weight": (9, 4)}, config={"tie_word_embeddings": True})
    links = case.solution.links("alias")
    finding = Finding.of_links(case, "E-TIE", links, "tied", case.solution.cure.of("alias"))
    assert finding.explained == 1


def test_a_finding_is_json():
    finding = Finding(
        "E-X",
        "cause",
        3,
        change_of_config({"v": [Field("vocab_size", 5, 7)]}),
        KeyMap().rename("a", "b"),
        evidence=("x",),
    )
    found = json.loads(json.dumps(finding.to_dict()))
    assert found["key_map"] == [{"op": "rename", "source": "a", "target": "b"}]
    assert (found["code"], found["explained"], found["evidence"], found["unproven"]) == ("E-X", 3, ["x"], [])
    assert "config" in json.dumps(found["keywords"])
    assert "set vocab_size to 7 in config.json" in found["cure"]
    assert Finding("W-X", "cause", 0, "none").to_dict()["key_map"] is None
