"""What llama.cpp's converter computed, taken back block by block, and two tensors whose rows take turns."""

from __future__ import annotations

import pytest
import torch

from shardload.dequantise.gguf_blocks import GgufBlocks
from shardload.dequantise.gguf_values import Plain, plain_weight, undone, woven
from shardload.dequantise.scheme import Weight
from shardload.errors import CorruptError
from shardload.keymap.decoding import decode
from shardload.keymap.dequantised import Dequantised
from shardload.keymap.derived import narrowed
from shardload.tensor_ref import Span, TensorRef
from tests.dequantise.test_gguf_blocks import blocks_of


def stored(name, shape):
    size = 4 * torch.Size(shape).numel()
    return TensorRef(name, "F32", shape, "m", Span(0, size))


def read(tensor, numbers):
    """Return a tensor whose parts are cut from matrices in memory, as their headers say."""
    parts = {}
    for role, ref in tensor.stored.items():
        width = numbers[role].shape[1]
        size = numbers[role].element_size()
        row, column = divmod(ref.span.start // size, width)
        parts[role] = numbers[role][row : row + ref.shape[0], column : column + ref.shape[1]]
    place = torch.empty(tensor.shape, dtype=torch.float32)
    decode(tensor, parts, place)
    return place


@pytest.mark.parametrize(
    ("step", "made", "kept"),
    [
        ("plus one", lambda x: x + 1, lambda x: x - 1),
        ("minus exponential", lambda x: -x.exp(), lambda x: x.neg().double().log().float()),
    ],
)
def test_a_step_is_taken_back(step, made, kept):
    numbers = made(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)))
    whole = Dequantised.of(undone(plain_weight(stored("w", (6, 8))), step), "F32")
    assert torch.equal(read(whole, {"numbers": numbers}), kept(numbers))
    part = narrowed(narrowed(whole, 0, 2, 3), 1, 1, 5)
    assert torch.equal(read(part, {"numbers": numbers}), kept(numbers)[2:5, 1:6])
    vector = Dequantised.of(undone(plain_weight(stored("w", (48,))), step), "F32")
    assert torch.equal(read(vector, {"numbers": numbers.view(1, 48)}), kept(numbers).flatten())


def test_a_number_that_no_exponential_gives_is_told():
    whole = Dequantised.of(undone(plain_weight(stored("ssm_a", (1, 2))), "minus exponential"), "F32")
    with pytest.raises(CorruptError, match="ssm_a.*not below zero"):
        read(whole, {"numbers": torch.tensor([[-1.0, 0.0]])})


def test_two_tensors_take_turns_packed_or_plain():
    packed = blocks_of("Q8_0", 12).view(6, 2 * 34)  # two blocks of 32 in a row
    first = GgufBlocks("", "Q8_0", 64).decode({"blocks": packed}, range(6), range(64))
    second = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    ref = TensorRef("gate", "U8", (6, 68), "m", Span(0, packed.numel()))
    gate = Weight("gate", GgufBlocks("GGUF Q8_0", "Q8_0", 64), (2, 3, 64), (("blocks", ref),))
    up = plain_weight(stored("up", (2, 3, 64)))
    both = woven(gate, up, (2, 6, 64))
    assert both.scheme.label == "GGUF Q8_0 and GGUF"
    whole = Dequantised.of(both, "F32")
    wanted = torch.stack([first, second], 1).view(2, 6, 64).transpose(1, 2)
    parts = {"0 blocks": packed, "1 numbers": second}
    assert torch.equal(read(whole, parts), wanted)
    part = narrowed(narrowed(whole, 1, 33, 20), 2, 1, 4)
    assert torch.equal(read(part, parts), wanted[:, 33:53, 1:5])
    assert part.stored["0 blocks"].shape == (6, 34)


def test_plain_numbers_are_cut_as_they_are_asked():
    assert Plain().cuts(range(1, 3), range(4, 9)) == {"numbers": ((0, 1, 2), (1, 4, 5))}
