"""Texts that name keyword arguments: Python and the command line say them in their own words."""

from __future__ import annotations

import copy
import doctest
import pickle

import pytest

from shardload import UsageError, errors
from shardload.errors import Cures, Wording, joined, keyword, keywords_of, printable, said, without
from shardload.errors.wording import in_python, plain_keywords


def options(name, value):
    return None if name == "config" else f"--{name}" if value in (True, ...) else f"--{name} {value}"


WORDINGS = {
    "plain": (Wording("pass {copy}", copy=True), "pass copy=True", "pass --copy"),
    "braces of a user's file": (
        Wording("{0} needs {copy}", "{copy}=True", copy=True),
        "{copy}=True needs copy=True",
        "{copy}=True needs --copy",
    ),
    "no words for it": (Wording("pass {config}", config=...), "pass config=…", "pass config=…"),
    "inside another": (
        Wording("{0}; and {1}", "a", keyword("dtype", "f")),
        "a; and dtype='f'",
        "a; and --dtype f",
    ),
    "joined": (joined("\n", ["a {", keyword("copy", True)]), "a {\ncopy=True", "a {\n--copy"),
    "a choice without words": (Cures("a", keyword("config")), "a; or config=…", "a"),
    "choices in choices": (Cures(Cures("a", keyword("config")), "b"), "a; or config=…; or b", "a; or b"),
    "only choices without words": (Cures(keyword("config")), "config=…", "config=…"),
}


@pytest.mark.parametrize(("text", "python", "command"), WORDINGS.values(), ids=WORDINGS)
@pytest.mark.parametrize(
    "through", [lambda x: x, copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_text_has_the_words_of_who_says_it(text, python, command, through):
    text = through(text)
    assert text == python
    assert said(text, options) == command
    assert UsageError("what", where=text, cure=text).said(options) == (
        f"what\n  where: {command}\n  cure:  {command}"
    )


def test_choices_can_be_left_out_by_keyword():
    cure = Cures("mend it", Wording("pass {model_class}", model_class=...), keyword("copy", True))
    assert without(cure, "model_class") == "mend it; or copy=True"
    assert without(cure, "revision") is cure
    assert without(keyword("copy", True), "copy") is None
    assert without(None, "copy") is None
    assert without("plain", "copy") == "plain"


def test_the_examples_of_wordings_are_true():
    assert doctest.testmod(errors.wording) == (0, 7)


def test_escaping_keeps_the_keywords():
    text = printable(Wording("{0} needs {copy}", "a\u202e\n", copy=True))
    assert text == "a\\u202e\\n needs copy=True"
    assert said(text, options) == "a\\u202e\\n needs --copy"


def test_keywords_are_data():
    text = Wording("{0}: pass {copy}, {token}", keyword("dtype", "f"), copy=True, token=...)
    assert keywords_of(text) == {"dtype": "f", "copy": True, "token": ...}
    assert plain_keywords(text) == {"dtype": "f", "copy": True, "token": None}
    assert keywords_of("copy=True") == keywords_of(None) == plain_keywords(None) == {}
    assert [in_python("copy", value) for value in (True, ..., "x")] == ["copy=True", "copy=…", "copy='x'"]


@pytest.mark.parametrize("text", ["plain", "naïve 你好", "a b", ""])
def test_a_printable_text_is_itself(text):
    assert printable(text) is text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\u202eb", r"\u202eb"),
        ("\u200b", r"\u200b"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_what_does_not_print_is_escaped(text, shown):
    assert printable(text) == shown


def test_plain_texts_are_joined_as_python_does():
    assert joined(", ", iter(["a", "b"])) == "a, b"
    assert type(joined(", ", ["a", "b"])) is str
