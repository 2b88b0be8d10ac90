"""compressed-tensors: packed whole numbers (`weight_packed`), and int8 with scales of tensors, rows or groups.

Source: the formats "pack-quantized" and "int-quantized" of compressed-tensors; its fp8 is read as any other. Numbers
run on from word to word, low bits first, with half their range added. Zeros are packed along the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardload.dequantise.bits import numbers
from shardload.dequantise.scaled import Scaled
from shardload.dequantise.scheme import (
    BadValuesError,
    Scheme,
    Weight,
    require_finite,
    scale_groups,
    whole_groups,
)
from shardload.dequantise.stored import damaged, require, reshaped
from shardload.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from shardload.dequantise.scheme import Cut
    from shardload.dequantise.stored import Stored
    from shardload.tensor_ref import TensorRef

_SCALES = "F16 BF16 F32"
_METHODS = frozenset({"", "compressed-tensors", "modelopt"})
_WIDTHS = frozenset({1, 2, 3, 4, 8})


@dataclass(frozen=True)
class PackedInts(Scheme):
    """Numbers of `bits`, `group` columns of `width` with one scale; `ordered` ones name the group of each column."""

    bits: int
    width: int
    group: int
    zeros: bool
    ordered: bool
    label: str = field(default="compressed-tensors", init=False)

    @property
    def grain(self) -> int:
        """Numbers that whole words hold."""
        return 32 if 32 % self.bits else 32 // self.bits

    def window(self, rows: range, columns: range) -> tuple[range, range]:
        """Return whole groups, and whole rows where a group does not end with a word or has an order."""
        if self.group % self.grain or self.ordered:
            columns = range(self.width)
        return whole_groups(rows, self.grain if self.zeros else 1, 1 << 62), whole_groups(
            columns, self.group, self.width
        )

    def cuts(self, rows: range, columns: range) -> Mapping[str, tuple[Cut, ...]]:
        """Return the words of the block, with the scales and zeros of its groups."""
        groups = (1, columns.start // self.group, -(-len(columns) // self.group))
        if self.ordered:
            groups = (1, 0, -(-self.width // self.group))
        words = (1, columns.start * self.bits // 32, -(-len(columns) * self.bits // 32))
        cuts: dict[str, tuple[Cut, ...]] = {
            "packed": ((0, rows.start, len(rows)), words),
            "scales": ((0, rows.start, len(rows)), groups),
        }
        if self.zeros:
            zeros = (0, rows.start * self.bits // 32, len(rows) * self.bits // 32)
            cuts["zeros"] = (zeros, groups)
        return cuts

    def decode(self, parts: Mapping[str, torch.Tensor], rows: range, columns: range) -> torch.Tensor:  # noqa: ARG002
        """Return (number - zero) x scale, in the dtype of the scales."""
        stored = parts["scales"]
        values = numbers(parts["packed"], self.bits)[:, : len(columns)]
        # Numbers and zeros have half the range added: only a missing zero has to be made up for.
        zeros = numbers(parts["zeros"].t(), self.bits).t() if self.zeros else None
        if zeros is None:
            values = values - (1 << (self.bits - 1))
        scales = require_finite("scales", stored.float())
        if self.ordered:
            index = parts["g_idx"].long()
            if bool((index < 0).any()) or bool((index >= scales.shape[1]).any()):
                raise BadValuesError("g_idx", f"names groups outside 0 to {scales.shape[1] - 1}")
            if zeros is not None:
                values = values - zeros.index_select(1, index)
            return (values * scales.index_select(1, index)).to(stored.dtype)
        values = values.contiguous()
        scale_groups(values, self.group, 0, scales, zeros)
        return values.to(stored.dtype)


def packed_ints(stored: Stored) -> Iterator[Weight]:
    """Yield the weights in words. Raises CorruptError for parts that do not fit together."""
    for prefix, packed in stored.ending("weight_packed"):
        if packed.dtype == "I32":  # bytes hold fp4
            yield _packed(stored, prefix, packed)


def _packed(stored: Stored, prefix: str, packed: TensorRef) -> Weight:
    scales = stored.part(f"{prefix}weight_scale", packed)
    rows, width = _shape(stored, stored.part(f"{prefix}weight_shape", packed), packed)
    bits = _bits(stored, packed, width)
    groups = scales.shape[1] if len(scales.shape) == 2 else 0
    if not groups or width % groups:
        require(scales, (rows, max(width // 128, 1)), _SCALES, packed)
    require(packed, packed.shape, "I32", scales)
    parts = [("packed", packed), ("scales", require(scales, (rows, groups), _SCALES, packed))]
    zeros = stored.tensors.get(f"{prefix}weight_zero_point")
    if zeros is not None:
        parts.append(("zeros", require(zeros, (-(-rows * bits // 32), groups), "I32", packed)))
        if rows * bits % 32:
            raise UnsupportedError(
                f"{rows} rows of zeros do not fill whole words", where=f"{zeros.shard}: {zeros.name}"
            )
    order = stored.tensors.get(f"{prefix}weight_g_idx")
    if order is not None:
        parts.append(("g_idx", require(order, (width,), "I32 I64", packed)))
    scheme = PackedInts(bits, width, width // groups, zeros is not None, order is not None)
    beside = stored.there(prefix, "weight_shape", "input_scale", "input_zero_point")
    return Weight(f"{prefix}weight", scheme, (rows, width), tuple(parts), beside=beside)


def _bits(stored: Stored, packed: TensorRef, width: int) -> int:
    """Return the bits of a number. Words of short rows fit several: then the settings have to name just one of them."""
    fitting = {bits for bits in range(1, 9) if packed.shape[1] == -(-width * bits // 32)}
    groups = stored.settings.get("config_groups")
    schemes = groups.values() if isinstance(groups, Mapping) else ()
    weights = [each.get("weights") for each in schemes if isinstance(each, Mapping)]
    named = [each.get("num_bits") for each in weights if isinstance(each, Mapping)]
    found = fitting if len(fitting) == 1 else {bits for bits in fitting if bits in named}
    if len(found) == 1 and found <= _WIDTHS:
        return found.pop()
    told = " or ".join(map(str, sorted(fitting))) or "no known number of"
    why = "are not read" if len(fitting) < 2 else "fit, and config_groups names not just one of them"
    raise UnsupportedError(
        f"{packed.name} {list(packed.shape)} holds {packed.shape[0]} x {width} numbers: {told} bits {why}",
        where=f"{packed.shard}: {packed.name}",
    )


def _shape(stored: Stored, told: TensorRef, packed: TensorRef) -> tuple[int, int]:
    require(told, (2,), "I64 I32", packed)
    content, size = stored.read(told), told.span.nbytes // 2
    rows, width = (int.from_bytes(content[at : at + size], "little", signed=True) for at in (0, size))
    if len(packed.shape) != 2 or rows != packed.shape[0] or not 0 < width <= 32 * packed.shape[1]:
        raise damaged(told, f"{told.name} says {rows} x {width}, and {packed.name} is {list(packed.shape)}")
    return rows, width


def eight_bit_ints(stored: Stored) -> Iterator[Weight]:
    """Yield the weights of int8 with a scale for the tensor, each row or each group. Raises CorruptError.

    Other quantisers use the names for other things, BitNet for divisors: none that the settings name is read so.
    """
    if stored.method not in _METHODS:
        return
    for name, scales in stored.ending("_scale"):
        packed = stored.tensors.get(name)
        if packed is None or packed.dtype != "I8" or len(packed.shape) != 2:
            continue
        if len(scales.shape) != 2 and scales.numel != 1:
            continue  # ChatGLM's
        rows, width = packed.shape
        grid = scales.shape if len(scales.shape) == 2 else (1, 1)
        if grid[0] not in {1, rows} or not grid[1] or width % grid[1]:
            require(scales, (rows, 1), _SCALES, packed)
        require(scales, scales.shape, _SCALES, packed)
        parts = [("numbers", require(packed, packed.shape, "I8", scales)), ("scales", reshaped(scales, grid))]
        zeros = stored.tensors.get(f"{name}_zero_point")
        if zeros is not None:
            parts.append(("zeros", reshaped(require(zeros, scales.shape, "I8", packed), grid)))
        block = (1 if grid[0] == rows else rows, width // grid[1])
        scheme = Scaled(
            "compressed-tensors int8",
            "int8",
            rows,
            width,
            block,
            in_scales_dtype=True,
            zeros=zeros is not None,
        )
        beside = stored.there(name.removesuffix("weight"), "input_scale", "input_zero_point")
        yield Weight(name, scheme, packed.shape, tuple(parts), beside=beside)
