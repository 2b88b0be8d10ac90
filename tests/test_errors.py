"""Errors keep what they say, and their report, when they cross to another process."""

from __future__ import annotations

import pickle

import pytest

from shardload import MismatchError, UsageError, build_shell, fill, open_checkpoint
from tests.tiny import Net, random_state, write_checkpoint


def test_an_error_is_pickled_whole():
    error = pickle.loads(pickle.dumps(UsageError("what", where="here", cure="do")))
    assert (type(error), error.what, error.where, error.cure) == (UsageError, "what", "here", "do")
    assert str(error) == "what\n  where: here\n  cure:  do"


def test_a_mismatch_is_pickled_with_its_report(tmp_path):
    state = random_state(Net())
    state = {f"module.{key}": value for key, value in state.items()}
    with pytest.raises(MismatchError) as caught:
        fill(build_shell(Net), open_checkpoint(write_checkpoint(tmp_path, state)))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert copy.report.to_dict() == caught.value.report.to_dict()
    assert copy.report.faults
