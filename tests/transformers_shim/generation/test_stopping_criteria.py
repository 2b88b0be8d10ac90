"""Stopping criteria that answer as before 4.39 (one bool) and after (one a row)."""

from __future__ import annotations

import pytest
import torch

from shardload.errors import UsageError
from shardload.transformers_shim.generation import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxNewTokensCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    validate_stopping_criteria,
)
from tests.transformers_shim.generation.small_repos import likeliest, model, prompt

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


class Letters:
    """A tokenizer of one letter a token, except that 25 stands for two."""

    def decode(self, ids, **_):
        return "".join("yz" if i == 25 else chr(97 + i) for i in ids)


class At(StoppingCriteria):
    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.shape[1] >= self.length


class RowAt(StoppingCriteria):
    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == self.token


def test_one_bool_ends_all(tmp_path):
    made = model(tmp_path)
    criteria = StoppingCriteriaList([At(9)])
    assert made.generate(prompt(), max_new_tokens=50, stopping_criteria=criteria).shape == (1, 9)
    assert made.generate(prompt(), max_new_tokens=50, stopping_criteria=[At(7)]).shape == (1, 7)


def test_a_bool_a_row_ends_rows(tmp_path):
    made = model(tmp_path)
    free = made.generate(torch.tensor([[3, 1, 4], [2, 2, 2]]), max_new_tokens=9)
    token = free[0, 4].item()
    stopped = made.generate(
        torch.tensor([[3, 1, 4], [2, 2, 2]]), max_new_tokens=9, stopping_criteria=[RowAt(token)]
    )
    assert stopped[0, :5].tolist() == free[0, :5].tolist()
    assert stopped.shape[1] <= free.shape[1]
    lone = made.generate(prompt(3, 1, 4), max_new_tokens=9, stopping_criteria=[RowAt(token)])
    assert lone[0].tolist() == free[0, : free[0, 3:].tolist().index(token) + 4].tolist()


def test_the_list_serves_both_ages():
    some, all_of_them = (
        StoppingCriteriaList([EosTokenCriteria(3)]),
        StoppingCriteriaList([EosTokenCriteria([3, 6])]),
    )
    assert some(IDS, None).tolist() == [True, False]
    assert not some(IDS, None)
    assert all_of_them(IDS, None)
    # Later code: unfinished & ~criteria(…), with rows.
    left = torch.ones(2, dtype=torch.long) & ~some(IDS, None)
    assert left.tolist() == [0, 1]
    assert type(left) is torch.Tensor
    assert not StoppingCriteriaList()(IDS, None)


def test_lengths_and_times():
    assert MaxLengthCriteria(3)(IDS, None).tolist() == [True, True]
    assert MaxLengthCriteria(4)(IDS, None).tolist() == [False, False]
    assert MaxNewTokensCriteria(1, 2)(IDS, None).all()
    assert not MaxNewTokensCriteria(1, 3)(IDS, None).any()
    assert MaxTimeCriteria(5.0, initial_timestamp=0.0)(IDS, None).all()
    assert not MaxTimeCriteria(500.0)(IDS, None).any()


def test_the_longest_length_of_a_list():
    assert StoppingCriteriaList([At(3), MaxLengthCriteria(8)]).max_length == 8
    assert StoppingCriteriaList([At(3)]).max_length is None
    assert validate_stopping_criteria(StoppingCriteriaList(), 9).max_length == 9
    with pytest.warns(UserWarning, match="8 tokens, not 9"):
        validate_stopping_criteria(StoppingCriteriaList([MaxLengthCriteria(8)]), 9)


def test_time_that_is_over(tmp_path):
    assert model(tmp_path).generate(prompt(), max_new_tokens=50, max_time=0.0).shape == (1, 6)


@pytest.mark.parametrize(
    ("ids", "stops"), [([0, 1, 2], True), ([2, 1], False), ([1, 2, 25], True), ([1, 2, 24, 0], False)]
)
def test_stop_strings(ids, stops):
    criterion = StopStringCriteria(Letters(), ["bc", "cy"])
    assert criterion(torch.tensor([ids]), None).tolist() == [stops]


def test_a_stop_string_in_generate(tmp_path):
    made = model(tmp_path)
    plain = likeliest(made, prompt(), 20)
    text = Letters().decode(plain[5:8])
    stopped = made.generate(prompt(), max_new_tokens=20, stop_strings=text, tokenizer=Letters())
    assert stopped[0].tolist() == plain[:8]
    with pytest.raises(UsageError, match="tokenizer"):
        made.generate(prompt(), max_new_tokens=20, stop_strings="ab")
