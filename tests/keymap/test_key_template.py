"""KeyTemplate: what a template matches, what it fills in, and which templates are refused."""

from __future__ import annotations

import pytest

from shardload import UsageError
from shardload.keymap.key_template import (
    LONGEST,
    MOST_PLACEHOLDERS,
    KeyTemplate,
    key_template,
    same_placeholders,
)


@pytest.mark.parametrize(
    ("template", "key", "values"),
    [
        ("a.b", "a.b", ()),
        ("a.b", "a.c", None),
        ("h.{}.w", "h.12.w", ("12",)),
        ("h.{}.w", "h.x.w", None),
        ("h.{}.w", "h..w", None),
        ("h.{}.w", "h.1.w.x", None),
        ("h.{}.{...}", "h.0.a.b", ("0", "a.b")),
        ("{...}.w", "a.b.w", ("a.b",)),
        ("{...}", "a", ("a",)),
        ("{...}.w", ".w", None),
        ("e.{n}.{}.w", "e.3.4.w", ("3", "4")),
        ("h.{}.w", "h.٣.w", None),  # a digit of another script
        ("a+b.{}", "a+b.1", ("1",)),
        ("a.b.{}", "axb.1", None),
        ("{...}.w", "a\nb.w", ("a\nb",)),
    ],
)
def test_a_key_matches_in_one_way(template, key, values):
    parsed = KeyTemplate(template)
    assert parsed.match(key) == values
    if values is not None:
        assert parsed.fill(values) == key
        assert parsed.is_literal == (values == ())


def test_an_offset_is_added_and_undone():
    plus = KeyTemplate("h.{+2}.w")
    assert plus.fill(["7"]) == "h.9.w"
    assert plus.negated() == "h.{-2}.w"
    assert KeyTemplate(plus.negated()).fill(["9"]) == "h.7.w"
    assert KeyTemplate("h.{-2}.w").fill(["1"]) is None  # nothing is below zero
    assert plus.fill(["007"]) is None
    assert (plus.plain(), plus.kinds) == ("h.{}.w", ("{}",))


@pytest.mark.parametrize(
    "text",
    [
        "{}{}",
        "{}1{}",
        "{...}.{...}",
        "{n}.{n}",
        "a" * (LONGEST + 1),
        "{}." * (MOST_PLACEHOLDERS + 1),
        7,
        None,
    ],
    ids=repr,
)
def test_a_template_that_could_match_in_two_ways_is_refused(text):
    with pytest.raises(UsageError) as caught:
        KeyTemplate(text)
    assert len(caught.value.where) <= 200


@pytest.mark.parametrize("text", ["{x}", "{1}", "{+}", "{+1234567}", "{", "a{ }b"])
def test_other_braces_are_text(text):
    assert KeyTemplate(text).is_literal
    assert KeyTemplate(text).match(text) == ()


def test_a_side_of_a_rule_takes_only_its_placeholders():
    key_template("h.{}").require()
    key_template("h.{n}").require(counter=True)
    key_template("h.{+1}").require(offsets=True)
    for text, asked in (("h.{n}", {}), ("h.{}", {"counter": True}), ("h.{+1}", {})):
        with pytest.raises(UsageError):
            key_template(text).require(**asked)


def test_both_sides_have_the_same_placeholders_in_the_same_order():
    same_placeholders("a.{}.{...}", "b.{+1}.c.{...}")
    same_placeholders("a.{}.{n}", "b.{}", ignoring="{n}")
    for other in ("b.{...}.{}", "b.{}", "b.{}.{...}.x{}"):
        with pytest.raises(UsageError, match="same placeholders"):
            same_placeholders("a.{}.{...}", other)


def test_a_hostile_key_takes_no_longer_than_its_length_squared():
    """A backtracking match of many placeholders would take longer than any test may."""
    template = KeyTemplate("x".join(["{}"] * MOST_PLACEHOLDERS) + "y")
    assert template.match("1x" * 5_000 + "z") is None
    assert template.match("1" * 10_000 + "y") is None
