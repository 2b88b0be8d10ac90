from __future__ import annotations

import pytest

from shardload import KeyMap, UsageError


def test_rename_with_a_number_and_a_rest():
    key_map = KeyMap().rename("module.{...}", "{...}").rename("h.{}.attn.{...}", "layers.{}.attention.{...}")
    assert key_map.apply("module.h.3.attn.q.weight") == "layers.3.attention.q.weight"


def test_a_key_that_matches_nothing_stays():
    assert KeyMap().rename("h.{}.w", "l.{}.w").apply("h.x.w") == "h.x.w"


def test_a_mapping_is_a_map():
    key_map = KeyMap.of({"a.{}": "b.{}", "*.inv_freq": None})
    assert key_map.apply("a.1") == "b.1"
    assert key_map.apply("rope.inv_freq") is None


def test_an_entry_of_a_mapping_may_give_several_names():
    assert KeyMap.of({"a.{}": ["a.{}", "b.{}"], "c": ("d", "e", "f")}).rules == (
        KeyMap().alias("a.{}", "b.{}").rename("c", "d").alias("d", "e").alias("d", "f").rules
    )
    for wrong in ([], ["b", None], 3, [3]):
        with pytest.raises(UsageError, match="texts to texts, to lists of them, or to None"):
            KeyMap.of({"a": wrong})


def test_invert_leads_back():
    key_map = KeyMap.of({"h.{}.attn.{...}": "layers.{}.{...}", "wte": "embed"})
    for key in ("h.0.attn.q.w", "wte", "other"):
        mapped = key_map.apply(key)
        assert mapped is not None
        assert key_map.invert().apply(mapped) == key


def test_a_drop_has_no_inverse():
    with pytest.raises(UsageError, match="no inverse"):
        KeyMap().drop("*.bias").invert()


def test_two_keys_with_one_name_are_refused():
    with pytest.raises(UsageError, match="both become"):
        KeyMap.of({"a.{}": "c.{}", "b.{}": "c.{}"}).map_keys(["a.0", "b.0"])


def test_placeholders_must_agree():
    with pytest.raises(UsageError, match="placeholders"):
        KeyMap().rename("h.{}.w", "layers.w")


def test_json_round_trip():
    key_map = KeyMap.of({"h.{}.{...}": "l.{}.{...}", "x": None})
    assert KeyMap.from_json(key_map.to_json()) == key_map


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 2, "rules": []}', '{"version": 1, "rules": [{"op": "eval"}]}']
)
def test_other_json_is_refused(text):
    with pytest.raises(UsageError):
        KeyMap.from_json(text)
