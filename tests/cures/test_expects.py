"""Which tests are run again with cures: those that can pass only where something is refused or found."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests import test_where
from tests.cures import test_law
from tests.cures.expects import expects_a_refusal
from tests.keymap import test_key_template


def through_a_module():
    test_law.refusal(None, None)


@pytest.mark.parametrize(
    ("test", "expects"),
    [
        (test_law.test_every_cure_of_an_error_cures, True),  # its helper raises
        (test_where.test_a_printed_command_names_the_files_of_a_folder, True),
        (test_where.test_a_place_in_python_opens_again, False),
        (through_a_module, True),
        (test_key_template.test_a_key_matches_in_one_way, False),
    ],
)
def test_a_refusal_is_expected_by_the_test_or_by_what_it_calls(test, expects):
    assert expects_a_refusal(SimpleNamespace(function=test, fixturenames=())) is expects


def test_a_fixture_that_runs_commands_is_enough():
    assert expects_a_refusal(SimpleNamespace(function=test_law.kinds_by_code, fixturenames=("call_cli",)))
