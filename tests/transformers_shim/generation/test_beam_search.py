"""BeamHypotheses and BeamSearchScorer by their definitions, on numbers that can be checked by hand."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from shardload.transformers_shim.generation.beam_search import BeamHypotheses, BeamSearchScorer


@pytest.mark.parametrize("seed", range(10))
def test_the_best_are_kept_whatever_the_order(seed):
    rng = random.Random(seed)
    penalty = rng.choice([0.0, 0.5, 1.0, 2.0])
    ended = [(torch.arange(rng.randint(1, 6)), -rng.random() * 9) for _ in range(12)]
    kept = BeamHypotheses(3, penalty, early_stopping=False)
    for ids, total in ended:
        kept.add(ids, total)
    best = sorted((total / len(ids) ** penalty for ids, total in ended), reverse=True)[:3]
    assert sorted((score for score, _, _ in kept.beams), reverse=True) == pytest.approx(best)
    assert kept.worst_score == pytest.approx(best[-1])
    assert len(kept) == 3


def test_the_prompt_is_not_counted_where_the_generated_length_is_given():
    kept = BeamHypotheses(2, 1.0, early_stopping=False)
    kept.add(torch.arange(10), -6.0, generated_len=3)
    assert kept.worst_score == -2.0


@pytest.mark.parametrize(
    ("stopping", "penalty", "best", "done"),
    [
        (True, 1.0, -0.1, True),  # enough is enough
        (False, 1.0, -9.0, True),  # -9 over a length of 4 is -2.25, worse than -2
        (False, 1.0, -7.0, False),
        ("never", 1.0, -9.0, False),  # over the greatest length of 10 it may still become -0.9
        ("never", 1.0, -30.0, True),
        ("never", -1.0, -1.0, True),  # with a negative penalty a longer text only gets worse
    ],
)
def test_when_nothing_can_become_better(stopping, penalty, best, done):
    kept = BeamHypotheses(2, penalty, stopping, max_length=10)
    assert not kept.is_done(best, 4)
    for _ in range(2):
        kept.beams.append((-2.0, torch.arange(3), None))
    assert kept.is_done(best, 4) is done


def test_never_needs_to_know_the_greatest_length():
    with pytest.raises(ValueError, match="max_length"):
        BeamHypotheses(2, 1.0, "never")


def test_an_end_among_the_first_ends_its_beam_and_a_later_one_is_passed_over():
    scorer = BeamSearchScorer(1, 2)
    ids = torch.tensor([[7, 8], [7, 9]])
    step = scorer.process(
        ids,
        torch.tensor([[-1.0, -2.0, -3.0, -4.0]]),
        torch.tensor([[0, 5, 0, 6]]),  # 0 is the end
        torch.tensor([[1, 0, 0, 1]]),
        pad_token_id=3,
        eos_token_id=0,
    )
    assert step["next_beam_tokens"].tolist() == [5, 6]
    assert step["next_beam_indices"].tolist() == [0, 1]
    assert step["next_beam_scores"].tolist() == [-2.0, -4.0]
    assert [(score, kept.tolist()) for score, kept, _ in scorer._beam_hyps[0].beams] == [(-1 / 3, [7, 9])]


def test_a_prompt_that_is_done_is_padded_and_others_go_on():
    scorer = BeamSearchScorer(2, 2, do_early_stopping=True)
    ids = torch.arange(8).view(4, 2)
    ended = (torch.tensor([[-1.0, -2.0, -3.0, -4.0]] * 2), torch.tensor([[0, 0, 5, 6], [5, 6, 0, 0]]))
    places = torch.tensor([[0, 1, 0, 1]] * 2)
    first = scorer.process(ids, *ended, places, pad_token_id=3, eos_token_id=0)
    assert first["next_beam_indices"].tolist() == [0, 1, 2, 3]  # of the whole batch, not of the prompt
    assert not scorer.is_done
    second = scorer.process(ids, *ended, places, pad_token_id=3, eos_token_id=0)
    assert second["next_beam_tokens"].tolist() == [3, 3, 5, 6]


@pytest.mark.parametrize("most", [None, 3])
def test_the_sequences_are_the_best_followed_by_an_end_and_padded(most):
    scorer = BeamSearchScorer(1, 2, num_beam_hyps_to_keep=2, length_penalty=0.0)
    scorer._beam_hyps[0].add(torch.tensor([7]), -1.0, (0,))
    running = torch.tensor([[7, 8, 9], [7, 8, 4]])
    output = scorer.finalize(
        running, torch.tensor([-0.5, -3.0]), None, None, most, pad_token_id=3, eos_token_id=0,
        beam_indices=[(0, 1), (0, 0)],
    )  # fmt: skip
    wanted = [[7, 8, 9, 0], [7, 0, 3, 3]]
    assert output["sequences"].tolist() == [line[:most] for line in wanted]
    assert output["sequence_scores"].tolist() == [-0.5, -1.0]
    assert output["beam_indices"].tolist() == [line[:most] for line in ([0, 1, -1, -1], [0, -1, -1, -1])]


def test_beams_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="two or more"):
        BeamSearchScorer(1, 1)
    with pytest.raises(ValueError, match="groups of beams"):
        BeamSearchScorer(1, 2, num_beam_groups=2)


def test_with_every_candidate_the_search_finds_the_best_of_all_sequences():
    """Steps with scores that depend on the token before, and as many beams as there are sequences of one token less."""
    chances = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    scorer = BeamSearchScorer(1, 16, num_beam_hyps_to_keep=3)
    ids, totals = torch.zeros(16, 1, dtype=torch.long), torch.tensor([0.0] + [-1e9] * 15)
    for _ in range(3):
        every = (totals[:, None] + chances[ids[:, -1]]).view(1, -1)
        scores, flat = every.topk(32)
        step = scorer.process(ids, scores, flat % 4, flat // 4, pad_token_id=0, eos_token_id=None)
        totals = step["next_beam_scores"]
        ids = torch.cat([ids[step["next_beam_indices"]], step["next_beam_tokens"][:, None]], 1)
    found = scorer.finalize(ids, totals, None, None, max_length=4)["sequences"].tolist()
    sums = {
        path: sum(chances[a, b].item() for a, b in itertools.pairwise((0, *path)))
        for path in itertools.product(range(4), repeat=3)
    }
    assert found == [[0, *path] for path in sorted(sums, key=sums.get, reverse=True)[:3]]
