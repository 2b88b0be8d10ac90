"""Sampling against a loop that draws from the same probabilities with the same seed, and batches of answers."""

from __future__ import annotations

import pytest
import torch

from shardload.transformers_shim.generation import LogitsProcessor, LogitsProcessorList
from tests.transformers_shim.generation.small_repos import PREPARE, likeliest, model, prompt


def drawn(made, ids, steps, change, seed):
    """Draw tokens from the softmax of changed logits, without a cache."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for _ in range(steps):
            scores = change(ids, made(ids).logits[:, -1].double())
            ids = torch.cat([ids, torch.multinomial(scores.float().softmax(-1), 1)], 1)
    return ids.tolist()


def top_k(scores, k):
    kept = scores.topk(k).indices
    return torch.full_like(scores, -torch.inf).scatter(1, kept, scores.gather(1, kept))


def top_p(scores, p):
    order = scores.argsort(descending=True)
    before = scores.gather(1, order).softmax(-1).cumsum(-1) - scores.gather(1, order).softmax(-1)
    kept = scores.gather(1, order).masked_fill(before >= p, -torch.inf)
    return torch.empty_like(scores).scatter(1, order, kept)


def penalised(ids, scores, penalty):
    scores = scores.clone()
    for token in set(ids[0].tolist()):
        scores[0, token] = scores[0, token] * (penalty if scores[0, token] < 0 else 1 / penalty)
    return scores


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"top_k": 0}, lambda ids, s: s),
        ({}, lambda ids, s: top_k(s, 23)),
        ({"temperature": 0.5, "top_k": 0}, lambda ids, s: s / 0.5),
        ({"top_k": 3}, lambda ids, s: top_k(s, 3)),
        ({"top_k": None, "top_p": 0.7}, lambda ids, s: top_p(s, 0.7)),
        ({"temperature": 2.0, "top_k": 9, "top_p": 0.8}, lambda ids, s: top_p(top_k(s / 2, 9), 0.8)),
        ({"repetition_penalty": 1.6, "top_k": 0}, lambda ids, s: penalised(ids, s, 1.6)),
        # The penalty is applied before the temperature.
        (
            {"repetition_penalty": 1.6, "temperature": 0.4, "top_k": 4},
            lambda ids, s: top_k(penalised(ids, s, 1.6) / 0.4, 4),
        ),
    ],
)
def test_draws_follow_the_seed_and_the_settings(tmp_path, settings, change):
    made = model(tmp_path)
    for seed in (0, 7):
        torch.manual_seed(seed)
        got = made.generate(prompt(), do_sample=True, max_new_tokens=12, **settings).tolist()
        assert got == drawn(made, prompt(), 12, change, seed)


def test_several_answers_to_each_prompt(tmp_path):
    made = model(tmp_path)
    ids = torch.tensor([[3, 1, 4], [1, 5, 9]])
    torch.manual_seed(0)
    answers = made.generate(ids, do_sample=True, max_new_tokens=6, num_return_sequences=3)
    assert answers.shape == (6, 9)
    assert answers[:3, :3].tolist() == [[3, 1, 4]] * 3
    assert answers[3:, :3].tolist() == [[1, 5, 9]] * 3
    assert len({tuple(row) for row in answers[:3].tolist()}) == 3


def test_several_greedy_answers_would_be_the_same_one(tmp_path):
    with pytest.raises(ValueError, match="do_sample=True"):
        model(tmp_path).generate(prompt(), num_return_sequences=2, max_new_tokens=2)


def test_left_padding_changes_nothing(tmp_path):
    made = model(tmp_path)
    ids = torch.tensor([[0, 0, 0, 8, 2], [3, 1, 4, 1, 5], [0, 6, 6, 2, 7]])
    mask = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    rows = made.generate(ids, attention_mask=mask, max_new_tokens=12).tolist()
    assert rows[0][3:] == likeliest(made, prompt(8, 2), 12)
    assert rows[1] == likeliest(made, prompt(), 12)
    assert rows[2][1:] == likeliest(made, prompt(6, 6, 2, 7), 12)


def test_a_mask_is_made_from_padding(tmp_path):
    made = model(tmp_path, pad_token_id=0)
    rows = made.generate(torch.tensor([[0, 0, 0, 8, 2], [3, 1, 4, 1, 5]]), max_new_tokens=8).tolist()
    assert rows[0][3:] == likeliest(made, prompt(8, 2), 8)


def test_padding_that_is_also_the_end_says_nothing(tmp_path):
    made = model(tmp_path, PREPARE.replace("**inputs, ", "**inputs, **self.spy(attention_mask), ") + SPY)
    made.generate(torch.tensor([[0, 0, 8, 2]]), max_new_tokens=1, pad_token_id=0, eos_token_id=[22, 0])
    assert made.masks == [[[1, 1, 1, 1]]]


SPY = """
    masks = []

    def spy(self, mask):
        self.masks.append(mask.tolist())
        return {}
"""


def test_each_row_ends_at_its_own_end_and_is_padded(tmp_path):
    made = model(tmp_path)
    ids = torch.tensor([[3, 1, 4, 1, 5], [2, 2, 2, 2, 2]])
    free = made.generate(ids, max_new_tokens=12).tolist()
    ends = [free[0][7], free[1][10]]
    rows = made.generate(ids, max_new_tokens=12, eos_token_id=ends, pad_token_id=22).tolist()
    for row, all_of_it in zip(rows, free, strict=True):
        last = next(n for n in range(5, len(row)) if all_of_it[n] in ends)
        assert row == all_of_it[: last + 1] + [22] * (len(row) - last - 1)
    assert max(len([t for t in row if t != 22]) for row in rows) == len(rows[0])


def test_without_a_padding_token_the_first_end_pads(tmp_path):
    made = model(tmp_path)
    ids = torch.tensor([[3, 1, 4, 1, 5], [2, 2, 2, 2, 2]])
    free = made.generate(ids, max_new_tokens=8).tolist()
    ends = [free[0][5], 21]
    rows = made.generate(ids, max_new_tokens=8, eos_token_id=ends).tolist()
    assert rows[0][5:] == [ends[0]] * (len(rows[0]) - 5)


@pytest.mark.parametrize(("version", "dtype"), [("4.44.2", torch.bfloat16), ("4.45.0", torch.float32)])
def test_processors_see_float32_since_4_45(tmp_path, version, dtype):
    seen = []

    class Look(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(scores.dtype)
            return scores

    made = model(tmp_path, transformers_version=version).bfloat16()
    made.generate(prompt(), max_new_tokens=2, do_sample=True, logits_processor=LogitsProcessorList([Look()]))
    assert seen == [dtype, dtype]
