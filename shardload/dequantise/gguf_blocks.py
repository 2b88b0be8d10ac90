"""GGUF: the blocks of llama.cpp, decoded by torch, or by the `gguf` package where a table of theirs is needed.

Source: the layouts of ggml and of the package's NumPy functions, which give the same bits. Bytes hold several numbers
in planes: the low bits of a run of bytes are one run of numbers, the next bits the run behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from shardload.dequantise.bits import looked_up
from shardload.dequantise.scaled import FP4
from shardload.dequantise.scheme import Scheme, Weight, require_finite, whole_groups
from shardload.dequantise.stored import reshaped
from shardload.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch

    from shardload.dequantise.scheme import Cut
    from shardload.dequantise.stored import Stored

    Blocks = Callable[[torch.Tensor], torch.Tensor]


class BlockKind(NamedTuple):
    """A type of GGUF: its number in files, the numbers in a block, and the bytes of one."""

    code: int
    numbers: int
    size: int


KINDS = {
    "Q4_0": BlockKind(2, 32, 18), "Q4_1": BlockKind(3, 32, 20), "Q5_0": BlockKind(6, 32, 22),
    "Q5_1": BlockKind(7, 32, 24), "Q8_0": BlockKind(8, 32, 34), "Q2_K": BlockKind(10, 256, 84),
    "Q3_K": BlockKind(11, 256, 110), "Q4_K": BlockKind(12, 256, 144), "Q5_K": BlockKind(13, 256, 176),
    "Q6_K": BlockKind(14, 256, 210), "IQ2_XXS": BlockKind(16, 256, 66), "IQ2_XS": BlockKind(17, 256, 74),
    "IQ3_XXS": BlockKind(18, 256, 98), "IQ1_S": BlockKind(19, 256, 50), "IQ4_NL": BlockKind(20, 32, 18),
    "IQ3_S": BlockKind(21, 256, 110), "IQ2_S": BlockKind(22, 256, 82), "IQ4_XS": BlockKind(23, 256, 136),
    "IQ1_M": BlockKind(29, 256, 56), "TQ1_0": BlockKind(34, 256, 54), "TQ2_0": BlockKind(35, 256, 66),
    "MXFP4": BlockKind(39, 32, 17), "NVFP4": BlockKind(40, 64, 36),
}  # fmt: skip
"""The types that hold packed weights."""

_TWICE = tuple(2 * value + 0.0 for value in FP4)  # without a negative zero
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class GgufBlocks(Scheme):
    """Rows of `width` numbers in blocks of one kind."""

    label: str
    kind: str
    width: int

    def window(self, rows: range, columns: range) -> tuple[range, range]:
        """Return whole blocks."""
        return rows, whole_groups(columns, KINDS[self.kind].numbers, self.width)

    def cuts(self, rows: range, columns: range) -> Mapping[str, tuple[Cut, ...]]:
        """Return the bytes of the blocks."""
        _, count, size = KINDS[self.kind]
        along = (1, columns.start // count * size, len(columns) // count * size)
        return {"blocks": ((0, rows.start, len(rows)), along)}

    def decode(self, parts: Mapping[str, torch.Tensor], rows: range, columns: range) -> torch.Tensor:
        """Return the numbers in float32."""
        stored = parts["blocks"]
        found = _DECODED.get(self.kind)
        if found is None:
            return _by_package(stored, self.kind)
        return found(stored.reshape(-1, KINDS[self.kind].size)).reshape(len(rows), len(columns))


def gguf_weights(stored: Stored) -> Iterator[Weight]:
    """Yield the packed weights of a GGUF file. Raises UnsupportedError where it takes the absent `gguf` package."""
    for name, kind in stored.kinds.items():
        if kind not in KINDS or name not in stored.tensors:
            continue
        ref = stored.tensors[name]
        _, count, size = KINDS[kind]
        if kind not in _DECODED and find_spec("gguf") is None:
            raise UnsupportedError(
                f"{name} is packed as {kind}, whose tables are in another package",
                where=f"{ref.shard}: {name}",
                cure="pip install gguf",
            )
        width = ref.shape[-1] // size * count
        blocks = reshaped(ref, (prod(ref.shape[:-1]), ref.shape[-1]))
        scheme = GgufBlocks(f"GGUF {kind}", kind, width)
        yield Weight(name, scheme, (*ref.shape[:-1], width), (("blocks", blocks),))


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """Return the float16 at a place of each block, [blocks, 1]."""
    import torch

    stored = blocks[:, at : at + 2].contiguous().view(-1).view(torch.float16)
    return require_finite("blocks", stored.float())[:, None]


def _planes(stored: torch.Tensor, bits: int, run: int) -> torch.Tensor:
    """Return the numbers of some bits in runs of bytes: [blocks, numbers], the low bits of a run first."""
    import torch

    mask = (1 << bits) - 1
    runs = stored.reshape(stored.shape[0], -1, run)
    if (
        bits == 4 and runs.shape[1] == 1
    ):  # nothing is stacked, which saves a fifth; with more runs it costs one
        both = torch.empty((len(runs), 2, run), dtype=stored.dtype, device="cpu")
        torch.bitwise_and(runs[:, 0], mask, out=both[:, 0])
        torch.bitwise_right_shift(runs[:, 0], 4, out=both[:, 1])
        return both.flatten(1)
    planes = [(runs >> shift) & mask if shift else runs & mask for shift in range(0, 8, bits)]
    return torch.stack(planes, 2).flatten(1)


def _spread(values: torch.Tensor, scales: torch.Tensor, least: torch.Tensor | None = None) -> torch.Tensor:
    """Return numbers, [blocks, numbers], times the scales of their groups, [blocks, groups], less the least values."""
    grouped = values.float().view(*scales.shape, -1)
    grouped.mul_(scales[..., None])
    if least is not None:
        grouped.sub_(least[..., None])
    return grouped.flatten(1)


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    import torch

    numbers = _planes(blocks[:, 2:], 4, 16).view(torch.int8).sub_(8)
    return numbers.float().mul_(_half(blocks, 0))


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    return _planes(blocks[:, 4:], 4, 16).float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _fifth_bits(stored: torch.Tensor) -> torch.Tensor:
    """Return the 32 bits of four bytes as 0 or 16, [blocks, 32]."""
    import torch

    shifts = torch.arange(8, dtype=torch.uint8, device="cpu")
    return (((stored[:, :, None] >> shifts) & 1) << 4).flatten(1)


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    numbers = _planes(blocks[:, 6:], 4, 16) | _fifth_bits(blocks[:, 2:6])
    return numbers.float().sub_(16).mul_(_half(blocks, 0))


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    numbers = _planes(blocks[:, 8:], 4, 16) | _fifth_bits(blocks[:, 4:8])
    return numbers.float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    import torch

    return blocks[:, 2:].view(torch.int8).float().mul_(_half(blocks, 0))


def _q2_k(blocks: torch.Tensor) -> torch.Tensor:
    scales = blocks[:, :16]
    high, low = _half(blocks, 80), _half(blocks, 82)
    return _spread(_planes(blocks[:, 16:80], 2, 32), high * (scales & 15), low * (scales >> 4))


def _q3_k(blocks: torch.Tensor) -> torch.Tensor:
    import torch

    low = _planes(blocks[:, 96:104], 4, 8)
    high = _planes(blocks[:, 104:108], 2, 4)
    scales = (low | high << 4).float().sub_(32)
    absent = _planes(blocks[:, :32], 1, 32) ^ 1  # four is taken off where the bit is not set
    numbers = _planes(blocks[:, 32:96], 2, 32).view(torch.int8) - (absent << 2).view(torch.int8)
    return _spread(numbers, _half(blocks, 108) * scales)


def _scales_and_least(stored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return eight scales and eight least values of 6 bits in twelve bytes; the last four of each are in two pieces."""
    import torch

    first, second, third = stored[:, :4], stored[:, 4:8], stored[:, 8:]
    scales = torch.cat([first & 63, (third & 15) | (first >> 6) << 4], 1)
    least = torch.cat([second & 63, (third >> 4) | (second >> 6) << 4], 1)
    return scales, least


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    scales, least = _scales_and_least(blocks[:, 4:16])
    return _spread(_planes(blocks[:, 16:], 4, 32), _half(blocks, 0) * scales, _half(blocks, 2) * least)


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    scales, least = _scales_and_least(blocks[:, 4:16])
    numbers = _planes(blocks[:, 48:], 4, 32) | _planes(blocks[:, 16:48], 1, 32) << 4
    return _spread(numbers, _half(blocks, 0) * scales, _half(blocks, 2) * least)


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    import torch

    scales = blocks[:, 192:208].view(torch.int8).float()
    numbers = _planes(blocks[:, :128], 4, 64) | _planes(blocks[:, 128:192], 2, 32) << 4
    return _spread(numbers.float().sub_(32), _half(blocks, 208) * scales)


def _tq1_0(blocks: torch.Tensor) -> torch.Tensor:
    """Five numbers of three values are digits of a byte, which is multiplied until the digit stands in front."""
    import torch

    digits = []
    for start, stop, count in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        stored = blocks[:, start:stop]
        digits += [stored * 3**place for place in range(count)]  # the product keeps its last eight bits
    numbers = (torch.cat(digits, 1).to(torch.int16) * 3 >> 8) - 1
    return numbers.float().mul_(_half(blocks, 52))


def _tq2_0(blocks: torch.Tensor) -> torch.Tensor:
    return _planes(blocks[:, :64], 2, 32).float().sub_(1).mul_(_half(blocks, 64))


def _mxfp4(blocks: torch.Tensor) -> torch.Tensor:
    """Unlike elsewhere a byte holds a number of each half of its block, and every exponent is one, 255 too."""
    scales = (blocks[:, :1].float() - 128).exp2()
    pairs = looked_up(blocks[:, 1:].contiguous(), _TWICE).view(-1, 16, 2)
    return require_finite("blocks", pairs.transpose(1, 2).flatten(1).mul_(scales))


def _iq4_values(stored: torch.Tensor, run: int) -> torch.Tensor:
    pairs = looked_up(stored.contiguous(), _IQ4).view(stored.shape[0], -1, run, 2)
    return pairs.transpose(2, 3).flatten(1)


def _iq4_nl(blocks: torch.Tensor) -> torch.Tensor:
    return _iq4_values(blocks[:, 2:], 16).mul_(_half(blocks, 0))


def _iq4_xs(blocks: torch.Tensor) -> torch.Tensor:
    import torch

    low = torch.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], 2).flatten(1)
    high = torch.stack([(blocks[:, 2:4] >> shift) & 3 for shift in range(0, 8, 2)], 2).flatten(1)
    scales = _half(blocks, 0) * (low | high << 4).float().sub_(32)
    return _spread(_iq4_values(blocks[:, 8:], 16), scales)


_DECODED: dict[str, Blocks] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "TQ1_0": _tq1_0, "TQ2_0": _tq2_0, "MXFP4": _mxfp4,
    "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs,
}  # fmt: skip


def _by_package(stored: torch.Tensor, kind: str) -> torch.Tensor:
    """Return rows of numbers as the `gguf` package decodes them, with its tables; it works on 16 rows at a time."""
    import gguf
    import torch

    array = gguf.dequantize(stored.contiguous().numpy(), gguf.GGMLQuantizationType[kind])
    return require_finite("blocks", torch.from_numpy(array))
