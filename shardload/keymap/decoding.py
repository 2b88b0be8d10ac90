"""Decoding: the parts of a packed weight become the numbers of a plain tensor, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload._system.fresh_pages import FreshPages
from shardload.dequantise import BadValuesError
from shardload.dequantise.stored import damaged
from shardload.keymap.dequantised import block_of
from shardload.keymap.views import narrowed_view, strides_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from shardload.keymap.dequantised import Dequantised
    from shardload.tensor_ref import TensorRef

_PIECE = 2**17  # elements that are decoded at a time: what a core's own cache holds
WORK_SPACE = 32 * _PIECE
"""Bytes that decoding takes beside the stored parts and the result."""
_PAGES = FreshPages()  # of results: half of the time would go into the first touch of small ones


class Decoding:
    """One plain tensor while the parts of its weight arrive; `place` is where its numbers go."""

    def __init__(self, tensor: Dequantised, place: torch.Tensor) -> None:
        self._tensor, self._place = tensor, place
        self._roles = tensor.stored
        self._parts: dict[str, torch.Tensor] = {}

    def take(self, ref: TensorRef, part: torch.Tensor) -> tuple[TensorRef, ...]:
        """Take one part; return all of them once the tensor has been decoded, and none before."""
        for role, wanted in self._roles.items():
            if wanted == ref:
                self._parts[role] = part
        if len(self._parts) < len(self._roles):
            return ()
        decode(self._tensor, self._parts, self._place)
        self._parts = {}
        return tuple(self._roles.values())


def decode(tensor: Dequantised, parts: Mapping[str, torch.Tensor], place: torch.Tensor) -> None:
    """Write the numbers of a tensor into its place. Raises CorruptError, which names the file and the key.

    `parts` are the tensor's `stored` ones. No more is computed at a time than a few MB.
    """
    import torch

    weight = tensor.weight
    try:
        # A tensor that was made in inference mode can be written to only in it.
        with torch.inference_mode():
            if place.is_contiguous() and place.is_cpu:
                _PAGES.touch(place.data_ptr(), place.nbytes)
            _Writer(tensor, parts).write(tensor.view, place)
    except BadValuesError as error:
        ref = dict(weight.parts)[error.role]
        what = f"{ref.name}, a part of a weight in {weight.scheme.label}, {error.why}"
        raise damaged(ref, what) from None


class _Writer:
    """Decodes views of one weight from parts that may be cut already."""

    def __init__(self, tensor: Dequantised, parts: Mapping[str, torch.Tensor]) -> None:
        self.weight, self.parts = tensor.weight, parts
        block = block_of(tensor.view, tensor.weight)
        cuts = tensor.weight.scheme.cuts(block.rows, block.columns)
        self._begin = {(role, dim): start for role, each in cuts.items() for dim, start, _ in each}

    def write(self, view: TensorRef, place: torch.Tensor) -> None:
        """Write the numbers of a view, piece by piece along the dimension that lies widest apart."""
        block = block_of(view, self.weight)
        covered = len(block.rows) * len(block.columns)
        if covered > _PIECE and max(view.shape) > 1:
            strides = strides_of(view)
            dim = max(range(len(strides)), key=lambda at: strides[at] if view.shape[at] > 1 else -1)
            step = max(view.shape[dim] * _PIECE // covered, 1)
            step = step // 32 * 32 or step // 8 * 8 or step
            for start in range(0, view.shape[dim], step):
                length = min(step, view.shape[dim] - start)
                self.write(narrowed_view(view, dim, start, length), place.narrow(dim, start, length))
            return
        numbers = self._numbers(block.rows, block.columns)
        if numbers.dtype != place.dtype and numbers.itemsize == place.itemsize:
            numbers = numbers.float()  # torch casts float16 to bfloat16 one number at a time
        turned = view.strides is not None and len(view.shape) > 1
        # A cast that turns is slow, and so is turning anything but a matrix into one that is packed.
        if turned:
            numbers = numbers.to(place.dtype)
        found = numbers.as_strided(view.shape, block.strides, block.offset)
        place.copy_(found.squeeze().contiguous().view(view.shape) if turned else found)

    def _numbers(self, rows: range, columns: range) -> torch.Tensor:
        scheme = self.weight.scheme
        cut = dict(self.parts)
        for role, cuts in scheme.cuts(rows, columns).items():
            for dim, start, length in cuts:
                cut[role] = cut[role].narrow(dim, start - self._begin[role, dim], length)
        return scheme.decode(cut, rows, columns).contiguous()
