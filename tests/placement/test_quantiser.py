"""Quantiser: block by block on several threads it makes what bitsandbytes makes of the whole weight, to the byte."""

from __future__ import annotations

import threading

import pytest
import torch

from shardload.placement import quantiser
from shardload.placement.quantisation import Quantisation
from shardload.placement.quantiser import Quantiser
from shardload.placement.quantisers import bitsandbytes

pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")


def numbers(rows, width, dtype):
    """Return normal numbers, and rows that a cast to float16 makes zero, tiny, or infinite."""
    weight = torch.randn(rows, width, dtype=torch.float64)
    for row, factor in enumerate((0, 1e-9, 1e-7, 1e-5, 1e3, 6e4)):
        weight[row] *= factor
    return weight.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("width", [64, 33, 700])
def test_int8_is_that_of_bitsandbytes(monkeypatch, width, dtype):
    monkeypatch.setattr(quantiser, "_BLOCK", 640)
    monkeypatch.setattr(quantiser, "_PIECE", 2000)
    made_by = Quantiser(Quantisation.of(load_in_8bit=True), CPU, bitsandbytes())
    stored = numbers(50, width, dtype)
    for loaded_in in (dtype, torch.bfloat16):
        made = made_by.parameter(stored, loaded_in)
        expected = bitsandbytes().functional.int8_vectorwise_quant(stored.to(loaded_in).half())
        assert torch.equal(made.SCB, expected[1])
        known = expected[1].isfinite() & (expected[1] != 0)  # of others torch's own casts differ by thread
        assert known.sum() >= 44
        assert torch.equal(made.data[known], expected[0][known])
    made_by.close()


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("width", [64, 33, 48])
def test_four_bits_are_those_of_bitsandbytes(monkeypatch, width, kind):
    monkeypatch.setattr(quantiser, "_BLOCK", 640)
    monkeypatch.setattr(quantiser, "_PIECE", 5000)
    functional = bitsandbytes().functional
    made_by = Quantiser(
        Quantisation.of({"load_in_4bit": True, "bnb_4bit_quant_type": kind}), CPU, bitsandbytes()
    )
    stored = numbers(333, width, torch.bfloat16)
    made = made_by.parameter(stored, torch.bfloat16)
    packed, state = functional.quantize_4bit(stored, blocksize=64, quant_type=kind)
    assert torch.equal(made.data, packed)
    assert torch.equal(made.quant_state.absmax, state.absmax)
    made_by.close()


def test_an_error_of_a_worker_is_raised_and_workers_end(monkeypatch):
    monkeypatch.setattr(quantiser, "_BLOCK", 640)
    monkeypatch.setattr(quantiser, "_PIECE", 2000)
    made_by = Quantiser(Quantisation.of(load_in_8bit=True), CPU, bitsandbytes())
    monkeypatch.setattr(made_by, "_memory", lambda shape: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made_by.parameter(torch.ones(100, 64), torch.float32)
    made_by.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("shardload-quantise")]


def test_work_space_is_a_block_a_worker():
    made_by = Quantiser(Quantisation.of(load_in_8bit=True), CPU, bitsandbytes())
    workers = min(torch.get_num_threads(), 8)
    assert made_by.work_space([]) == 0
    assert made_by.work_space([1024, 512]) == 32 * workers * quantiser._BLOCK
    assert made_by.work_space([2**20]) == 32 * workers * 2**20
