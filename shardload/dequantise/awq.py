"""AWQ: whole numbers of 4 bits along the outputs, a scale and a zero for each group of inputs.

Source: the packing of AutoAWQ's GEMM version. A word holds the outputs 0, 2, 4, 6, 1, 3, 5, 7 of eight, low bits first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardload.dequantise.scheme import Scheme, Weight, require_finite, scale_groups, whole_groups
from shardload.dequantise.stored import require
from shardload.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from shardload.dequantise.scheme import Cut
    from shardload.dequantise.stored import Stored

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Awq(Scheme):
    """`group` inputs have one scale; `width` is the number of inputs."""

    group: int
    width: int
    label: str = field(default="AWQ", init=False)

    def window(self, rows: range, columns: range) -> tuple[range, range]:
        """Return whole words along the outputs, and whole groups of inputs."""
        return whole_groups(rows, 8, 1 << 62), whole_groups(columns, self.group, self.width)

    def cuts(self, rows: range, columns: range) -> Mapping[str, tuple[Cut, ...]]:
        """Return the words of the block, and the scales and zeros of its groups."""
        words = (1, rows.start // 8, len(rows) // 8)
        groups = (0, columns.start // self.group, -(-len(columns) // self.group))
        return {
            "qweight": ((0, columns.start, len(columns)), words),
            "qzeros": (groups, words),
            "scales": (groups, (1, rows.start, len(rows))),
        }

    def decode(self, parts: Mapping[str, torch.Tensor], rows: range, columns: range) -> torch.Tensor:  # noqa: ARG002
        """Return (number - zero) x scale, in the dtype of the scales."""
        scales = require_finite("scales", parts["scales"].float()).t()
        values, zeros = _turned(parts["qweight"]), _turned(parts["qzeros"])
        scale_groups(values, self.group, 0, scales, zeros)
        return values.to(parts["scales"].dtype)


def _turned(words: torch.Tensor) -> torch.Tensor:
    """Return the numbers in words as float32, [outputs, inputs]."""
    import torch

    inputs, outputs = words.shape
    packed = words.t().contiguous().view(-1).view(torch.uint8).view(outputs, inputs, 4)
    packed = packed.permute(0, 2, 1).contiguous()  # [outputs / 8, byte, inputs]
    halves = packed & 15, packed >> 4
    result = torch.empty((outputs, 8, inputs), dtype=torch.float32, device="cpu")
    for place, output in enumerate(_ORDER):
        result[:, output] = halves[place % 2][:, place // 2]
    return result.flatten(0, 1)


def awq_weights(stored: Stored) -> Iterator[Weight]:
    """Yield the weights that AWQ packed. Raises CorruptError for parts that do not fit together."""
    for prefix, packed in stored.ending(".qweight"):
        scales = stored.part(f"{prefix}.scales", packed)
        if len(packed.shape) != 2 or len(scales.shape) != 2 or packed.shape[1] == scales.shape[1]:
            continue  # GPTQ packs along the inputs
        zeros = stored.part(f"{prefix}.qzeros", packed)
        version = str(stored.settings.get("version", "gemm")).lower()
        if version != "gemm" or stored.settings.get("bits", stored.settings.get("w_bit", 4)) != 4:
            raise UnsupportedError(
                f"AWQ's version {version[:40]!r} is not known", where=f"{packed.shard}: {packed.name}"
            )
        width, words = packed.shape
        groups = scales.shape[0]
        require(packed, (width, words), "I32", scales)
        require(scales, (groups, 8 * words), "F16 BF16 F32", packed)
        require(zeros, (groups, words), "I32", packed)
        if not groups or width % groups:
            require(scales, (max(width // 128, 1), 8 * words), "F16 BF16 F32", packed)
        parts = (("qweight", packed), ("scales", scales), ("qzeros", zeros))
        scheme = Awq(width // groups, width)
        yield Weight(f"{prefix}.weight", scheme, (8 * words, width), parts, of_layer=True)
