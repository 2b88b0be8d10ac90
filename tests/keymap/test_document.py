"""The map's file: what is written comes back; anything else is refused, whatever was done to it."""

from __future__ import annotations

import json

import pytest

from shardload import KeyMap, NotFoundError, UsageError
from shardload.keymap import RULES
from shardload.keymap.document import VERSION, parts_of, to_document, to_text
from tests.calls import has_an_end
from tests.keymap.random_maps import refs_of

EVERY = (
    KeyMap()
    .rename("m.{...}", "{...}")
    .rename("gamma", "weight", everywhere=True)
    .rename("h.{}.{...}", "layers.{+1}.{...}")
    .drop("*.inv_freq")
    .alias("embed", "head")
    .split("layers.{}.qkv", ["layers.{}.q", "layers.{}.k"], [4, 2], dim=1)
    .cat(["layers.{}.gate", "layers.{}.up"], "layers.{}.gate_up", sizes=[2, 2])
    .stack("e.{n}.w", "e.w", count=4)
    .unstack("f.w", "f.{n}.w", dim=1)
    .transpose("t.{...}", (0, 1))
    .slice_rows("embed", 10, start=2)
    .pad_rows("embed", 20, value=0.5, of=8)
)


def test_every_rule_comes_back():
    assert {rule.op for rule in EVERY.rules} == set(RULES)
    assert KeyMap.from_json(EVERY.to_json()) == EVERY


def test_a_bound_map_comes_back_from_its_file(tmp_path):
    refs = refs_of({"m.a": (2,), "m.b": (2,), "c.0": (3,), "c.1": (3,)}, shards=2)
    bound = (
        KeyMap()
        .rename("m.{...}", "{...}")
        .cat(["a", "b"], "ab")
        .bind(refs, unresolved_target=["x"], confidence=0.97, unproven=["q and k"])
    )
    (tmp_path / "map.json").write_text(bound.to_json())
    assert KeyMap.of(tmp_path / "map.json") == KeyMap.read(str(tmp_path / "map.json")) == bound
    document = json.loads(bound.to_json())
    assert document["unchanged"] == ["c.{0-1}"]
    assert document["unresolved"] == {"source": [], "target": ["x"]}
    assert document["resident_bytes"] == 16
    assert document["source"]["keys"] == 4


def test_a_changed_rule_or_list_is_noticed():
    refs = refs_of({"m.a": (2,), "m.b": (2,), "c": (3,)})
    document = json.loads(KeyMap().rename("m.{...}", "{...}").bind(refs).to_json())
    for change in (
        {"rules": [{"op": "rename", "source": "m.{...}", "target": "n.{...}"}]},
        {"unchanged": []},
        {"unchanged": ["c", "d"]},
        {"unresolved": {"source": ["c"], "target": []}},
        {"source": {**document["source"], "sha256": "0" * 64}},
        {"target": {**document["target"], "keys": 4}},
    ):
        with pytest.raises(UsageError):
            KeyMap.from_json(json.dumps(document | change)).require_fit(refs)
    KeyMap.from_json(json.dumps(document)).require_fit(refs)


def with_rule(**rule) -> str:
    return json.dumps({"version": 1, "rules": [rule]})


@pytest.mark.parametrize(
    "text",
    [
        '{"version": 1, "version": 1, "rules": []}',
        '{"version": 1, "rules": [{"op": "drop", "pattern": "a", "pattern": "b"}]}',
        '{"version": 1, "rules": [], "extra": 1}',
        '{"version": true, "rules": []}',
        '{"version": 1.0, "rules": []}',
        '{"version": 1}',
        '{"version": 1, "rules": {}}',
        '{"version": 1, "rules": [], "confidence": NaN}',
        '{"version": 1, "rules": [], "confidence": 2}',
        '{"version": 1, "rules": [], "confidence": true}',
        '{"version": 1, "rules": [], "resident_bytes": -1}',
        '{"version": 1, "rules": [], "unchanged": "a"}',
        '{"version": 1, "rules": [], "unresolved": {"other": []}}',
        '{"version": 1, "rules": [], "source": {"keys": 1, "sha256": "xyz"}}',
        '{"version": 1, "rules": [], "source": {"keys": 1e3, "sha256": "' + "0" * 64 + '"}}',
        '{"version": 1, "rules": [' + "[" * 100_000,
        '{"version": 1, "rules": ["rename"]}',
        '{"version": 1, "rules": [{"op": ["drop"], "pattern": "a"}]}',
        '{"version": 1, "rules": ' + "9" * 5_000 + "}",
        with_rule(op="rename", source="a"),
        with_rule(op="rename", source="a", target="b", extra=1),
        with_rule(op="rename", source=1, target="b"),
        with_rule(op="rename", source="a", target="b", everywhere=1),
        with_rule(op="rename", source="a.{}", target="b"),
        with_rule(op="rename", source="a" * 20_000, target="b"),
        with_rule(op="rename", source="{}{}{}{}x", target="{}{}{}{}y"),
        with_rule(op="rename", source="{...}.{...}", target="{...}.{...}"),
        with_rule(op="rename", source="{}." * 20, target="{}." * 20),
        with_rule(op="rename", source="a.{+1}", target="b.{}"),
        with_rule(op="split", source="a", targets=["b"]),
        with_rule(op="split", source="a", targets=["b", "b"]),
        with_rule(op="split", source="a", targets="bc"),
        with_rule(op="split", source="a", targets=["b", "c"], sizes=[1]),
        with_rule(op="split", source="a", targets=["b", "c"], sizes=[1, -1]),
        with_rule(op="split", source="a", targets=["b", "c"], sizes=[1, 2**80]),
        with_rule(op="split", source="a", targets=["b", "c"], sizes=[1, True]),
        with_rule(op="split", source="a", targets=["b", "c"], dim=1000),
        with_rule(op="split", source="a", targets=[f"t.{n}" for n in range(5_000)]),
        with_rule(op="stack", source="a", target="b"),
        with_rule(op="stack", source="a.{n}", target="b.{n}"),
        with_rule(op="unstack", source="a", target="b.{n}", count=10**9),
        with_rule(op="transpose", source="a", dims=[0]),
        with_rule(op="transpose", source="a", dims="01"),
        with_rule(op="slice_rows", source="a", stop=2, start=3),
        with_rule(op="pad_rows", source="a", rows=2, value="x"),
        with_rule(op="pad_rows", source="a", rows=0),
        '{"version": 1, "rules": [{"op": "pad_rows", "source": "a", "rows": 2, "value": 1e999}]}',
        json.dumps({"version": 1, "rules": [{"op": "drop", "pattern": "a"}] * 20_001}),
    ],
)
def test_hostile_text_is_refused(text):
    with pytest.raises(UsageError) as caught:
        KeyMap.from_json(text)
    assert len(str(caught.value)) < 2_000


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path):
    (tmp_path / "map.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UsageError, match=r"map\.json"):
        KeyMap.read(tmp_path / "map.json")
    with pytest.raises(NotFoundError, match="null byte"):
        KeyMap.read(tmp_path / "a\0b.json")
    with pytest.raises(NotFoundError):
        KeyMap.of(str(tmp_path / "other.json"))
    with pytest.raises(NotFoundError):
        KeyMap.of(tmp_path)


def test_no_template_takes_long_on_any_key():
    key_map = (
        KeyMap()
        .rename("a{}b" + "{}b" * 10 + "{...}x", "c{}b" + "{}b" * 10 + "{...}y")
        .drop("*a*a*a*a*a*a*a*a*a*b")
        .rename("{...}.1.{}.1.{}.1.z", "{...}.2.{}.1.{}.1.z")
    )
    keys = ["a" + "1" * 4_000, "a1b" * 1_500, "a" * 4_000, "1." * 2_000, "a" + "1b" * 2_000 + "y"]
    with has_an_end():
        for key in keys:
            key_map.apply(key)


def test_many_renames_of_single_keys_are_looked_up():
    key_map = KeyMap.of({f"a.{n}.w{n}": f"b.{n}.w{n}" for n in range(20_000)})
    refs = refs_of({f"a.{n}.w{n}": (1,) for n in range(20_000)})
    calls = key_map.map_headers(refs)
    assert sum(calls.claimed) == 20_000
    assert "b.19999.w19999" in calls.tensors


def test_a_document_has_the_fields_of_the_map_and_is_read_as_it_was_written():
    loose = KeyMap().rename("a", "b")
    assert to_document(loose) == {
        "version": VERSION,
        "rules": [{"op": "rename", "source": "a", "target": "b"}],
    }
    assert parts_of(to_text(loose))["rules"] == loose.rules
    bound = loose.bind(refs_of({"a": (2,), "left": (1,)}))
    document = to_document(bound)
    assert document["unchanged"] == ["left"]
    assert document["source"] == vars(bound.source)
    parts = parts_of(to_text(bound))
    assert (parts["source"], parts["target"], parts["unchanged"]) == (
        bound.source,
        bound.target,
        bound.unchanged,
    )


def test_half_of_a_surrogate_pair_in_a_name_is_no_key():
    text = '{"version": 1, "rules": [{"op": "drop", "pattern": "a\\\\ud800"}]}'.replace("\\\\", "\\")
    with pytest.raises(UsageError, match="this is no key map"):
        KeyMap.from_json(text)
