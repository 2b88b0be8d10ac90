"""GPTQ: whole numbers of 2, 3, 4 or 8 bits along the inputs, a scale and a zero for each group of inputs.

Sources: the packing of AutoGPTQ and GPTQModel (`qweight`, `qzeros`, `scales`, `g_idx`). A zero is stored as one less,
unless `checkpoint_format` is "gptq_v2". With `desc_act`, `g_idx` tells the group of each input.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from shardload.dequantise.bits import numbers
from shardload.dequantise.scheme import (
    BadValuesError,
    Scheme,
    Weight,
    require_finite,
    scale_groups,
    whole_groups,
)
from shardload.dequantise.stored import require, whole_setting
from shardload.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from shardload.dequantise.scheme import Cut
    from shardload.dequantise.stored import Stored

_FORMATS = {"gptq": 1, "gptq_v2": 0}


@dataclass(frozen=True)
class Gptq(Scheme):
    """`lift` is added to a stored zero; `group` inputs have one scale where `ordered` is False, else `g_idx` says."""

    bits: int
    group: int
    lift: int
    ordered: bool
    label: str = field(default="GPTQ", init=False)

    @property
    def grain(self) -> int:
        """Numbers that whole words hold."""
        return 32 if self.bits == 3 else 32 // self.bits

    def window(self, rows: range, columns: range) -> tuple[range, range]:
        """Return whole words: of the zeros along the rows, of the numbers along the columns."""
        end = 1 << 62  # sizes are multiples of whole words
        return whole_groups(rows, self.grain, end), whole_groups(columns, self.grain, end)

    def cuts(self, rows: range, columns: range) -> Mapping[str, tuple[Cut, ...]]:
        """Return the words of the block; scales and zeros of all groups, which are few."""
        inputs = (0, columns.start * self.bits // 32, len(columns) * self.bits // 32)
        zeros = (1, rows.start * self.bits // 32, len(rows) * self.bits // 32)
        outputs = (1, rows.start, len(rows))
        cuts: dict[str, tuple[Cut, ...]] = {
            "qweight": (inputs, outputs),
            "scales": (outputs,),
            "qzeros": (zeros,),
        }
        if self.ordered:
            cuts["g_idx"] = ((0, columns.start, len(columns)),)
        return cuts

    def decode(self, parts: Mapping[str, torch.Tensor], rows: range, columns: range) -> torch.Tensor:  # noqa: ARG002
        """Return scale x (number - zero), in the dtype of the scales."""
        import torch

        values = numbers(parts["qweight"].t(), self.bits)  # [rows, columns]
        stored = parts["scales"]
        scales = require_finite("scales", stored.float())
        zeros = numbers(parts["qzeros"], self.bits) + self.lift  # [groups, rows]
        index = _in_order(columns.start, columns.stop, self.group)
        in_order = not self.ordered or torch.equal(parts["g_idx"].to(index.dtype), index)
        if in_order and columns.start % self.group == 0 and len(columns) % self.group == 0:
            scale_groups(values, self.group, columns.start // self.group, scales.t(), zeros.t())
            return values.to(stored.dtype)
        index = index if in_order else parts["g_idx"].to(index.dtype)
        if bool((index < 0).any()) or bool((index >= len(scales)).any()):
            raise BadValuesError("g_idx", f"names groups outside 0 to {len(scales) - 1}")
        # Picked along contiguous rows: along columns that lie apart it takes twice as long.
        values -= zeros.t().contiguous().index_select(1, index)
        values *= scales.t().contiguous().index_select(1, index)
        return values.to(stored.dtype)


@lru_cache(maxsize=8)
def _in_order(start: int, stop: int, group: int) -> torch.Tensor:
    """Return the groups of inputs in their own order."""
    import torch

    with torch.inference_mode(mode=False):
        return torch.arange(start, stop, dtype=torch.int32, device="cpu").div_(group, rounding_mode="floor")


def gptq_weights(stored: Stored) -> Iterator[Weight]:
    """Yield the weights that GPTQ packed. Raises CorruptError for parts that do not fit together."""
    for prefix, packed in stored.ending(".qweight"):
        scales = stored.part(f"{prefix}.scales", packed)
        if len(packed.shape) != 2 or len(scales.shape) != 2 or packed.shape[1] != scales.shape[1]:
            continue  # AWQ packs along the outputs
        yield _weight(stored, prefix)


def _weight(stored: Stored, prefix: str) -> Weight:
    packed, scales = stored.tensors[f"{prefix}.qweight"], stored.tensors[f"{prefix}.scales"]
    zeros = stored.part(f"{prefix}.qzeros", packed)
    index = stored.tensors.get(f"{prefix}.g_idx")
    groups, rows = scales.shape
    held = zeros.shape[1] * 32 // rows if len(zeros.shape) == 2 and rows else 0
    bits = held  # the settings may name other ones for some modules
    if bits not in {2, 3, 4, 8}:
        raise UnsupportedError(f"GPTQ of {bits} bits is not known", where=f"{packed.shard}: {packed.name}")
    columns = packed.shape[0] * 32 // bits
    require(packed, (columns * bits // 32, rows), "I32", scales)
    require(zeros, (groups, rows * bits // 32), "I32", packed)
    require(scales, (groups, rows), "F16 BF16 F32", packed)
    group = whole_setting(stored, "group_size", -1)
    if group < 1 or -(-columns // group) != groups:
        require(scales, (max(groups, 1), rows), "F16 BF16 F32", packed)
        group = -(-columns // groups)
        if index is None and columns % groups:
            raise UnsupportedError(
                f"{groups} groups of {columns} inputs may have several sizes, and group_size names none that fits",
                where=f"{packed.shard}: {packed.name}",
            )
    parts = [("qweight", packed), ("scales", scales), ("qzeros", zeros)]
    if index is not None:
        parts.append(("g_idx", require(index, (columns,), "I32 I64", packed)))
    scheme = Gptq(bits, group, _lift(stored), index is not None)
    return Weight(f"{prefix}.weight", scheme, (rows, columns), tuple(parts), of_layer=True)


def _lift(stored: Stored) -> int:
    named = str(stored.settings.get("checkpoint_format") or "gptq")
    if not stored.settings or named not in _FORMATS:
        raise UnsupportedError(
            "nothing says how GPTQ stored its zeros"
            if not stored.settings
            else f"GPTQ's checkpoint_format {named[:40]!r} is not known",
            cure="put the quantiser's own config beside the files: quantization_config in config.json, or "
            "quantize_config.json",
        )
    return _FORMATS[named]
