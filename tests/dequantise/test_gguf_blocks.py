"""GGUF's blocks: every type of the `gguf` package, against its own functions, bit for bit."""

from __future__ import annotations

import pytest
import torch

from shardload.dequantise import BadValuesError, Weight
from shardload.dequantise.gguf_blocks import _DECODED, KINDS, GgufBlocks
from shardload.keymap.decoding import decode
from shardload.keymap.dequantised import Dequantised
from shardload.keymap.derived import narrowed
from shardload.tensor_ref import Span, TensorRef

HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "TQ1_0": [52], "TQ2_0": [64], "IQ4_NL": [0], "IQ4_XS": [0],
    "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0], "IQ1_S": [0],
}  # fmt: skip


def blocks_of(kind, count=48, seed=0):
    """Return random blocks with scales that are numbers."""
    generator = torch.Generator().manual_seed(seed)
    size = KINDS[kind].size
    blocks = torch.randint(0, 256, (count, size), dtype=torch.uint8, generator=generator)
    for place in HALVES.get(kind, ()):
        scales = torch.randn(count, generator=generator).half()
        blocks[:, place : place + 2] = scales.view(torch.uint8).view(count, 2)
    if kind == "IQ1_M":  # a scale's bits are the high ones of four words
        blocks[:, 49::2] &= 0x3F
    if kind == "MXFP4":
        blocks[:, 0] = torch.randint(100, 150, (count,), generator=generator)
    return blocks


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_is_that_of_the_package(kind):
    gguf = pytest.importorskip("gguf")
    blocks = blocks_of(kind)
    own = torch.from_numpy(gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind]))
    count = KINDS[kind].numbers
    assert (KINDS[kind].numbers, KINDS[kind].size) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    made = GgufBlocks("", kind, count).decode({"blocks": blocks}, range(48), range(count))
    assert made.dtype == torch.float32
    assert torch.equal(made.view(torch.int32), own.view(48, count).contiguous().view(torch.int32))


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"NVFP4"}))  # whose scales are numbers, all of them
def test_blocks_with_scales_that_are_no_numbers_are_refused(kind):
    if kind not in _DECODED:
        pytest.importorskip("gguf")
    blocks = torch.full((1, KINDS[kind].size), 255, dtype=torch.uint8)
    numbers = range(KINDS[kind].numbers)
    with pytest.raises(BadValuesError, match="not finite"):
        GgufBlocks("", kind, len(numbers)).decode({"blocks": blocks}, range(1), numbers)


@pytest.mark.parametrize("kind", _DECODED)
def test_rows_and_blocks_are_decoded_alone(kind):
    _, count, size = KINDS[kind]
    stored = blocks_of(kind).view(8, 6 * size)
    scheme = GgufBlocks("", kind, 6 * count)
    whole = scheme.decode({"blocks": stored}, range(8), range(6 * count))
    ref = TensorRef("w", "U8", tuple(stored.shape), "a", Span(0, stored.numel()))
    tensor = Dequantised.of(Weight("w", scheme, (8, 6 * count), (("blocks", ref),)), "F32")
    part = narrowed(narrowed(tensor, 0, 3, 4), 1, count + 3, 2 * count)
    (cut,) = part.stored.values()
    assert cut.shape == (4, 3 * size)
    place = torch.empty(part.shape)
    decode(part, {"blocks": stored[3:7, size : 4 * size]}, place)
    assert torch.equal(place, whole[3:7, count + 3 : 3 * count + 3])
