"""fp8: weights that are numbers by themselves, with a scale for each block, row or tensor.

Sources: the checkpoints of DeepSeek V3 (`weight_scale_inv`, blocks of 128 x 128), of DeepSeek V4 (`scale`, powers of
two; experts in fp4 with a scale for 32 numbers), of compressed-tensors and ModelOpt (`weight_scale`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from shardload.dequantise.scaled import Scaled, fp8_values
from shardload.dequantise.scheme import Scheme, Weight
from shardload.dequantise.signatures import FP8
from shardload.dequantise.stored import damaged, require, reshaped
from shardload.errors import CorruptError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from shardload.dequantise.scheme import Cut
    from shardload.dequantise.stored import Stored
    from shardload.tensor_ref import TensorRef

_USUAL = 128
_SCALES = "F32 BF16 F16 F8_E8M0 U8"


@dataclass(frozen=True)
class Bare(Scheme):
    """Numbers of fp8 that nothing scales: a state dict that was cast, say. They are cast back, as torch does it."""

    label: str = field(default="fp8 without scales", init=False)
    is_packed = False

    def cuts(self, rows: range, columns: range) -> Mapping[str, tuple[Cut, ...]]:
        """Return the block."""
        return {"numbers": ((0, rows.start, len(rows)), (1, columns.start, len(columns)))}

    def decode(self, parts: Mapping[str, torch.Tensor], rows: range, columns: range) -> torch.Tensor:  # noqa: ARG002
        """Return the numbers."""
        return fp8_values(parts["numbers"])


def bare_weights(stored: Stored) -> Iterator[Weight]:
    """Yield the weights in fp8 that have no scales, where nothing says that there should be some.

    Raises CorruptError for one without scales beside others that have some, or where the settings name a quantiser.
    """
    bare, scaled = _by_scales(stored)
    for name, ref in bare.items():
        if stored.settings or scaled:
            told = "; where weights were cast and not scaled, take the quantiser out of config.json"
            raise CorruptError(
                f"{name} is in fp8, and its scales are not stored",
                where=f"{ref.shard}: {name}",
                cure=f"fetch the checkpoint again{told if stored.settings else ''}",
            )
    yield from just_cast(stored)


def just_cast(stored: Stored) -> Iterator[Weight]:
    """Yield the weights in fp8 of a checkpoint in which nothing has or wants scales; none of any other."""
    bare, scaled = _by_scales(stored)
    if scaled or stored.settings:
        return
    for name, ref in bare.items():
        parts = (("numbers", reshaped(ref, (prod(ref.shape[:-1]), ref.shape[-1]))),)
        yield Weight(name, Bare(), ref.shape, parts)


def _by_scales(stored: Stored) -> tuple[dict[str, TensorRef], bool]:
    """Return the tensors in fp8 in whose modules no name speaks of a scale, and whether there are others."""
    scaled = {
        before for before, _, last in (name.rpartition(".") for name in stored.tensors) if "scale" in last
    }
    found = {
        name: ref
        for name, ref in stored.tensors.items()
        if ref.dtype in FP8 and ref.shape and ref.strides is None
    }
    bare = {name: ref for name, ref in found.items() if name.rpartition(".")[0] not in scaled}
    return bare, len(bare) < len(found)


def fp8_weights(stored: Stored) -> Iterator[Weight]:
    """Yield the weights in fp8, and those in fp4 that have scales of their kind. Raises CorruptError."""
    for end in ("_scale_inv", ".scale", "_scale"):
        for base, scales in stored.ending(end):
            name = f"{base}.weight" if end == ".scale" else base
            packed = stored.tensors.get(name)
            if packed is None or f"{name}_scale_2" in stored.tensors:
                continue
            if packed.dtype in FP8:
                yield _weight(stored, name, packed, scales, "fp8", end)
            elif end == ".scale" and packed.dtype in {"I8", "F4"}:
                yield _weight(stored, name, packed, scales, "fp4", end)


def _weight(
    stored: Stored, name: str, packed: TensorRef, scales: TensorRef, numbers: str, end: str
) -> Weight:
    shape = (*packed.shape[:-1], 2 * packed.shape[-1]) if packed.dtype == "I8" else packed.shape
    if len(shape) < 2:
        raise _odd(packed, scales)
    height, width = shape[-2:]
    count = prod(shape[:-2])
    if scales.numel == 1:  # of all matrices together
        height, count = count * height, 1
    grid = _grid(packed, scales, shape)
    block = (
        _block(stored, packed, scales, height, grid[0], 0),
        _block(stored, packed, scales, width, grid[1], 1),
    )
    require(packed, packed.shape, packed.dtype, scales)
    require(scales, scales.shape, _SCALES, packed)
    in_bytes = (count * height, width // 2) if numbers == "fp4" else (count * height, width)
    parts = (
        ("numbers", reshaped(packed, in_bytes, "U8" if numbers == "fp4" else None)),
        ("scales", reshaped(scales, (count * grid[0], grid[1]))),
    )
    in_scales_dtype = end == "_scale" and scales.dtype in {"F16", "BF16"}
    scheme = Scaled(numbers, numbers, height, width, block, in_scales_dtype=in_scales_dtype)
    beside = stored.there(name.removesuffix("weight"), "input_scale", "activation_scale")
    return Weight(name, scheme, shape, parts, beside=beside)


def _grid(packed: TensorRef, scales: TensorRef, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the rows and columns of the scales of one matrix."""
    if scales.numel == 1:
        return 1, 1
    if len(shape) == len(scales.shape) and scales.shape[:-2] == shape[:-2]:
        return scales.shape[-2], scales.shape[-1]
    if scales.shape == shape[:1] and len(shape) == 2:
        return shape[0], 1
    raise _odd(packed, scales)


def _block(stored: Stored, packed: TensorRef, scales: TensorRef, size: int, many: int, dim: int) -> int:
    """Return the size of a block along a dimension: what the settings say, else the only one that fits."""
    named = stored.settings.get("weight_block_size")
    told = named[dim] if isinstance(named, list) and len(named) == 2 else None
    fitting = {size} if many == 1 else {size // many} if many and size % many == 0 else set()
    if type(told) is int and told > 0:
        if -(-size // told) == many:
            fitting = {told}
        elif many > 1 and packed.dtype in FP8:
            raise _odd(packed, scales)
    elif -(-size // _USUAL) == many > 1:
        fitting.add(_USUAL)
    if len(fitting) > 1:
        raise UnsupportedError(
            f"blocks of {' or '.join(map(str, sorted(fitting)))} fit {scales.name} {list(scales.shape)} beside "
            f"{packed.name} {list(packed.shape)}, and nothing says which",
            where=f"{scales.shard}: {scales.name}",
            cure='name it in config.json: "quantization_config": {"weight_block_size": [128, 128]}',
        )
    if not fitting:
        raise _odd(packed, scales)
    return fitting.pop()


def _odd(packed: TensorRef, scales: TensorRef) -> CorruptError:
    return damaged(
        scales,
        f"{scales.name} {list(scales.shape)} is no grid of scales for {packed.name} {list(packed.shape)}",
    )
