"""bitsandbytes: 4 bits as an index into 16 values with a scale for each block, and 8 bits with a scale a row.

Source: the checkpoints of bitsandbytes 0.39 and later. The first of two numbers in a byte is in its high bits. Blocks
run on over rows. Nested scales are bytes too: an index into 256 values, with a scale for each block, and an offset.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import gcd, isfinite, prod
from typing import TYPE_CHECKING, Any

from shardload.dequantise.bits import looked_up
from shardload.dequantise.scaled import Scaled
from shardload.dequantise.scheme import Scheme, Weight, require_finite, whole_groups
from shardload.dequantise.stored import damaged, require, reshaped
from shardload.errors import CorruptError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from shardload.dequantise.scheme import Cut
    from shardload.dequantise.stored import Stored
    from shardload.tensor_ref import TensorRef

_STATE = ".quant_state.bitsandbytes__"
_MOST = 2**16  # bytes of a quantiser's settings
VALUES = {
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    "fp4": (
        0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25,
        -0.0, -0.0052083334885537624, -0.6666666865348816, -1.0, -0.3333333432674408, -0.5, -0.1666666716337204, -0.25,
    ),
}  # fmt: skip
"""The 16 values of each kind. bitsandbytes stores them as `quant_map` too, and reads these whatever that says."""
_CODES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


@dataclass(frozen=True)
class FourBit(Scheme):
    """Blocks of `block` numbers of a weight with `width` columns and `numel` numbers; `nested` ones have one `offset`.

    `values` are what the numbers 0 to 15 stand for; `dtype` is that of the weight before it was packed, in which the
    numbers come out.
    """

    label: str
    values: tuple[float, ...]
    width: int
    numel: int
    block: int
    dtype: str
    nested: int = 0
    offset: float = 0.0

    def window(self, rows: range, columns: range) -> tuple[range, range]:  # noqa: ARG002
        """Return whole rows that begin and end with a block."""
        step = self.block // gcd(self.width, self.block)
        return whole_groups(rows, step, self.numel // self.width), range(self.width)

    def cuts(self, rows: range, columns: range) -> Mapping[str, tuple[Cut, ...]]:  # noqa: ARG002
        """Return the bytes and the scales of the blocks."""
        first, last = rows.start * self.width, rows.stop * self.width
        blocks = (0, first // self.block, -(-last // self.block) - first // self.block)
        return {"numbers": ((0, first // 2, -(-last // 2) - first // 2),), "absmax": (blocks,)}

    def decode(self, parts: Mapping[str, torch.Tensor], rows: range, columns: range) -> torch.Tensor:  # noqa: ARG002
        """Return value x scale."""
        import torch

        require_finite("quant_map", parts["quant_map"])
        numel = len(rows) * self.width
        values = looked_up(parts["numbers"], self.values, high_first=True)[:numel]
        scales = parts["absmax"]
        if self.nested:
            first = rows.start * self.width // self.block
            index = torch.arange(first, first + scales.numel(), device="cpu") // self.nested
            outer = parts["nested_absmax"].float()
            require_finite("nested_absmax", outer)
            found = parts["nested_quant_map"].float().index_select(0, scales.to(torch.int32))
            scales = found * outer.index_select(0, index) + self.offset
        require_finite("absmax", scales)
        whole = numel // self.block * self.block
        values[:whole].view(-1, self.block).mul_(scales[: whole // self.block, None])
        if whole < numel:
            values[whole:] *= scales[-1]
        return values.view(len(rows), self.width).to(getattr(torch, self.dtype))


def four_bit_weights(stored: Stored) -> Iterator[Weight]:
    """Yield the weights of 4 bits. Raises CorruptError for settings and parts that do not fit together."""
    for kind in ("nf4", "fp4"):
        for name, state in stored.ending(f"{_STATE}{kind}"):
            yield _four_bit(stored, name, state, kind)


def _four_bit(stored: Stored, name: str, state: TensorRef, kind: str) -> Weight:
    packed = stored.part(name, state)
    told = _settings(stored, state, kind)
    shape, block = told["shape"], told["blocksize"]
    numel = prod(shape)
    blocks = -(-numel // block)
    if packed.span.nbytes != -(-numel // 2) or packed.strides is not None:
        raise _odd(state, f"say shape {list(shape)}, and {name} has {packed.span.nbytes:,} bytes")
    nested = "nested_blocksize" in told
    values = stored.part(f"{name}.quant_map", packed)
    scales = require(stored.part(f"{name}.absmax", packed), (blocks,), "U8" if nested else "F32", packed)
    parts = [
        ("numbers", reshaped(packed, (packed.span.nbytes,), "U8")),
        ("absmax", scales),
        ("quant_map", require(values, (16,), "F32", packed)),
    ]
    more: dict[str, Any] = {}
    if nested:
        size = told["nested_blocksize"]
        outer = stored.part(f"{name}.nested_absmax", packed)
        table = stored.part(f"{name}.nested_quant_map", packed)
        parts += [
            ("nested_absmax", require(outer, (-(-blocks // size),), "F32", packed)),
            ("nested_quant_map", require(table, (256,), "F32", packed)),
        ]
        more = {"nested": size, "offset": float(told["nested_offset"])}
    label = f"bitsandbytes {kind}"
    scheme = FourBit(label, VALUES[kind], shape[-1], numel, block, told["dtype"], **more)
    return Weight(name, scheme, shape, tuple(parts), beside=(state.name,), of_layer=True)


def _settings(stored: Stored, state: TensorRef, kind: str) -> dict[str, Any]:
    """Return the settings that a quantiser stored as JSON in a tensor of bytes. Raises CorruptError."""
    try:
        told = dict(json.loads(stored.read(state) if state.span.nbytes <= _MOST else b""))
        shape, sizes, offset = tuple(told["shape"]), [told["blocksize"]], 0.0
        dtype = told["dtype"] = str(told["dtype"]).removeprefix("torch.")
        if "nested_blocksize" in told:
            sizes.append(told["nested_blocksize"])
            offset = float(told["nested_offset"])
        fits = (
            isfinite(offset) and len(shape) > 1 and dtype in _CODES and all(size % 2 == 0 for size in sizes)
        )
        fits = fits and told.get("quant_type", kind) == kind
        fits = fits and all(type(size) is int and 0 < size < 2**40 for size in (*shape, *sizes))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _odd(state, f"can't be read: {error}") from None
    if not fits:
        raise _odd(state, "hold sizes, a type or a dtype that no quantiser writes")
    return {**told, "shape": shape}


def _odd(state: TensorRef, why: str) -> CorruptError:
    return damaged(state, f"the quantiser's settings {state.name} {why}")


def eight_bit_weights(stored: Stored) -> Iterator[Weight]:
    """Yield the weights of 8 bits, which have a scale a row. Raises CorruptError for parts that do not fit together."""
    for prefix, scales in stored.ending("SCB"):
        packed = stored.part(f"{prefix}weight", scales)
        rows, width = packed.shape if len(packed.shape) == 2 else (0, 0)
        require(packed, (rows, width), "I8", scales)
        require(scales, (rows,), "F32", packed)
        beside = stored.there(prefix, "weight_format")
        for name in beside:
            form = stored.tensors[name]
            if form.span.nbytes <= 8 and any(stored.read(form)):
                raise UnsupportedError(
                    "weights of 8 bits in an order of one kind of device are not read",
                    where=f"{form.shard}: {name}",
                )
        scheme = Scaled("bitsandbytes int8", "int8", rows, width, (1, width), factor=7.874015718698502e-3)
        parts = (("numbers", packed), ("scales", reshaped(scales, (rows, 1))))
        yield Weight(packed.name, scheme, (rows, width), parts, beside=beside, of_layer=True)
