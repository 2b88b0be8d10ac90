"""The table of all keywords says what the signatures say, and answers every call with a keyword too many."""

from __future__ import annotations

import pytest

from shardload import UnsupportedError, UsageError
from shardload.keywords.table import ALIASES, EXCEPTIONS, KEYWORDS, NO_EFFECT, NOT_BUILT, NOT_NEEDED
from tests.keywords.entry_points import ENTRY_POINTS, KNOWN, OWN, is_translated, with_default


def test_the_table_says_what_the_signatures_say():
    for keyword, (takers, _) in KEYWORDS.items():
        assert set(takers) == {name for name, own in OWN.items() if keyword in own}, keyword
    for name, own in OWN.items():
        named = {keyword for keyword in own if with_default(name, keyword)}
        assert named <= KEYWORDS.keys(), f"{name}: {named - KEYWORDS.keys()} is not in the table"


def test_every_exception_is_one():
    for function, keywords in EXCEPTIONS.items():
        assert keywords.keys() <= KEYWORDS.keys() - OWN[function]


@pytest.mark.parametrize("function", ENTRY_POINTS)
@pytest.mark.parametrize("keyword", KNOWN)
def test_what_is_not_taken_is_declined_by_name(function, keyword):
    if keyword in OWN[function] or is_translated(function, keyword):
        return  # `test_what_is_taken_...`, `test_what_is_translated_...`
    with pytest.raises((UsageError, UnsupportedError)) as caught:
        ENTRY_POINTS[function](**{keyword: None})
    error = caught.value
    assert not isinstance(error, TypeError)
    assert error.what.startswith(f"{function} ")
    assert error.where == f"{keyword}="
    assert len(error.cure) > 8
    assert "{" not in error.cure.replace("{...}", "")


def test_no_keyword_stands_in_two_tables():
    tables = [KEYWORDS, ALIASES, NO_EFFECT, NOT_NEEDED, NOT_BUILT]
    for place, one in enumerate(tables):
        for other in tables[place + 1 :]:
            assert not one.keys() & other.keys()


def test_an_alias_leads_to_a_keyword():
    assert set(ALIASES.values()) <= KEYWORDS.keys()


def test_every_answer_says_what_to_do_and_is_a_template_of_the_function_alone():
    answers = [instead for _, instead in KEYWORDS.values()]
    answers += [instead for table in EXCEPTIONS.values() for instead in table.values()]
    answers += [*NOT_NEEDED.values(), *NOT_BUILT.values()]
    for answer in answers:
        assert "{" not in answer.format(function="fill"), answer
        assert len(answer) > 8
