"""The application of a map to tensors: views where the file has them, one copy where parts are put together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.keymap.derived import Derived, Filled, Joined
from shardload.tensor_ref import TORCH_NAMES, TensorRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch


class Assembly:
    """One joined tensor while its parts come in: memory of its own on the CPU, each part copied when it is there.

    `waiting` are the parts that have not come, each with the view of the result that it fills.
    """

    def __init__(self, tensor: Joined) -> None:
        import torch

        self.result = torch.empty(tensor.shape, dtype=getattr(torch, TORCH_NAMES[tensor.dtype]), device="cpu")
        self.waiting: dict[TensorRef, list[torch.Tensor]] = {}
        for ref, place in _places(tensor, self.result):
            self.waiting.setdefault(ref, []).append(place)

    def take(self, ref: TensorRef, part: torch.Tensor) -> bool:
        """Copy one part into its place; whether that was the last."""
        for place in self.waiting.pop(ref):
            place.copy_(part)
        return not self.waiting


def assemble(tensor: Derived, read: Callable[[TensorRef], torch.Tensor]) -> torch.Tensor:
    """Return a tensor of a map; `read` gives the view of a stored tensor that a ref stands for."""
    if isinstance(tensor, TensorRef):
        return read(tensor)
    assembly = Assembly(tensor)
    for ref in list(assembly.waiting):
        assembly.take(ref, read(ref))
    return assembly.result


def view_of(tensor: torch.Tensor, whole: TensorRef, ref: TensorRef) -> torch.Tensor:
    """Return the view `ref` of a tensor in memory that stands for the stored `whole`; what is strided is copied."""
    if ref == whole:
        return tensor
    flat = tensor.detach().contiguous().view(-1)
    offset = (ref.span.start - whole.span.start) // tensor.element_size()
    strides = ref.strides
    if strides is None:
        return flat[offset : offset + ref.numel].view(ref.shape)
    return flat[offset:].as_strided(ref.shape, strides, flat.storage_offset() + offset)


def _places(tensor: Derived | Filled, place: torch.Tensor) -> Iterator[tuple[TensorRef, torch.Tensor]]:
    if isinstance(tensor, TensorRef):
        yield tensor, place
    elif isinstance(tensor, Filled):
        place.fill_(tensor.value)
    else:
        at = 0
        for part in tensor.parts:
            size = part.shape[tensor.dim] if part.shape else 0
            yield from _places(part, place.narrow(tensor.dim, at, size) if part.shape else place)
            at += size
