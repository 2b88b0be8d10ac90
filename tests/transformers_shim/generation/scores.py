"""Scores of one row of tokens, and what is left of them."""

from __future__ import annotations

import math

import torch

INF = math.inf


def row(*values):
    return torch.tensor([values])


def logs(*chances):
    return torch.tensor([chances]).log()


def kept(scores):
    """Return which tokens of the first row are still possible."""
    return [n for n, score in enumerate(scores[0].tolist()) if score != -INF]


IDS = torch.tensor([[1, 2, 1, 2, 1]])


CHANCES = (0.4, 0.05, 0.3, 0.2, 0.05)
