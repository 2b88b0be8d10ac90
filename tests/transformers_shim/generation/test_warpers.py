"""Warpers on small scores, by their definitions; test_logits_process.py compares random ones with transformers."""

from __future__ import annotations

import pytest
import torch

from shardload.transformers_shim.generation import _warpers as ours
from tests.transformers_shim.generation.scores import CHANCES, IDS, kept, logs, row


def test_temperature():
    assert ours.TemperatureLogitsWarper(0.5)(IDS, row(1.0, -2.0)).tolist() == [[2.0, -4.0]]


@pytest.mark.parametrize(
    ("warper", "expected"),
    [
        (ours.TopKLogitsWarper(2), [0, 2]),
        (ours.TopKLogitsWarper(99), [0, 1, 2, 3, 4]),
        (ours.TopKLogitsWarper(1, min_tokens_to_keep=3), [0, 2, 3]),
        (ours.TopPLogitsWarper(0.5), [0, 2]),
        (ours.TopPLogitsWarper(0.71), [0, 2, 3]),
        (ours.TopPLogitsWarper(0.0), [0]),
        (ours.TopPLogitsWarper(0.1, min_tokens_to_keep=2), [0, 2]),
        (ours.MinPLogitsWarper(0.7), [0, 2]),
        (ours.MinPLogitsWarper(0.9, min_tokens_to_keep=3), [0, 2, 3]),
        (ours.EpsilonLogitsWarper(0.1), [0, 2, 3]),
        (ours.EpsilonLogitsWarper(0.99), [0]),
        # sqrt(0.3) * exp(-entropy) = 0.14, which is less than 0.3.
        (ours.EtaLogitsWarper(0.3), [0, 2, 3]),
        # The entropy is 1.35 nats: the surprises nearest to it are those of 0.3 (1.2) and 0.2 (1.61).
        (ours.TypicalLogitsWarper(0.45), [2, 3]),
    ],
)
def test_what_is_cut(warper, expected):
    assert kept(warper(IDS, logs(*CHANCES))) == expected


def test_a_filter_value():
    cut = ours.TopKLogitsWarper(1, filter_value=-7.0)(IDS, row(3.0, 5.0))
    assert cut.tolist() == [[-7.0, 5.0]]


def test_normalised():
    assert torch.allclose(ours.LogitNormalization()(IDS, row(0.0, 0.0)).exp(), row(0.5, 0.5))
