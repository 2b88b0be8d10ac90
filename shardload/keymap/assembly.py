"""A key map's tensors made of stored ones: views where the file has them, one copy where parts are joined."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload._system.file_mapping import private_memory
from shardload.errors import UnsupportedError
from shardload.keymap.decoding import Decoding
from shardload.keymap.dequantised import Dequantised
from shardload.keymap.derived import Derived, Filled, leaves
from shardload.tensor_ref import TORCH_NAMES, TensorRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch


class Assembly:
    """One tensor of memory of its own while its parts arrive: copied as they come; packed ones decoded at the last.

    `waiting` maps each part that has not arrived to the views of the result, or the packed weights, that it fills.
    """

    def __init__(self, tensor: Derived) -> None:
        self.result = _empty(tensor)
        self.waiting: dict[TensorRef, list[torch.Tensor | Decoding]] = {}
        for ref, place in _places(tensor, self.result):
            self.waiting.setdefault(ref, []).append(place)

    def take(self, ref: TensorRef, part: torch.Tensor) -> tuple[TensorRef, ...]:
        """Take one part; return the parts whose bytes are no longer needed."""
        done: dict[TensorRef, None] = {}
        for place in self.waiting.pop(ref):
            if isinstance(place, Decoding):
                done |= dict.fromkeys(place.take(ref, part))
            else:
                place.copy_(part)
                done[ref] = None
        return tuple(done)


class Joins:
    """All joined and dequantised tensors of a load, their parts in any order.

    Memory for a tensor is allocated when its first part arrives, and handed over with its last.
    """

    def __init__(self, tensors: Iterable[tuple[str, Derived]]) -> None:
        self._wanted = {key: tensor for key, tensor in tensors if not isinstance(tensor, TensorRef)}
        self._begun: dict[str, Assembly] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._wanted

    def take(self, key: str, ref: TensorRef, part: torch.Tensor) -> tuple[TensorRef, ...]:
        """Take a part of a tensor; return the parts whose bytes are no longer needed."""
        if key not in self._begun:
            self._begun[key] = Assembly(self._wanted[key])
        return self._begun[key].take(ref, part)

    def pop(self, key: str) -> torch.Tensor | None:
        """Hand over a tensor that is complete, and keep nothing of it; None where parts are missing."""
        return None if self._begun[key].waiting else self._begun.pop(key).result

    def without_parts(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield tensors that hold nothing, or nothing but padding."""
        for key, tensor in self._wanted.items():
            if not any(leaves(tensor)):
                yield key, Assembly(tensor).result


def assemble(tensor: Derived, read: Callable[[TensorRef], torch.Tensor]) -> torch.Tensor:
    """Return a tensor of a key map; `read` returns the stored tensor, or the view of one, that a ref names."""
    if isinstance(tensor, TensorRef):
        return read(tensor)
    assembly = Assembly(tensor)
    for ref in list(assembly.waiting):
        assembly.take(ref, read(ref))
    return assembly.result


def view_of(tensor: torch.Tensor, whole: TensorRef, ref: TensorRef) -> torch.Tensor:
    """Return the view `ref` of a tensor in memory that holds the stored tensor `whole`; a strided one is copied."""
    if ref == whole:
        return tensor
    flat = tensor.detach().contiguous().view(-1)
    offset = (ref.span.start - whole.span.start) // tensor.element_size()
    strides = ref.strides
    if strides is None:
        return flat[offset : offset + ref.numel].view(ref.shape)
    return flat[offset:].as_strided(ref.shape, strides, flat.storage_offset() + offset)


_LARGE = 2**17  # bytes: from here on malloc, too, begins with mappings


def _empty(tensor: Derived) -> torch.Tensor:
    """Return memory for a joined tensor. A large one may be cast and freed at once: it has to go back to the kernel."""
    import torch

    if tensor.dtype == "F4":
        raise UnsupportedError(
            "tensors of F4 can't be joined: torch can't copy parts of them", where=tensor.name
        )
    dtype = getattr(torch, TORCH_NAMES[tensor.dtype])
    if tensor.nbytes < _LARGE:
        return torch.empty(tensor.shape, dtype=dtype, device="cpu")
    return torch.frombuffer(private_memory(tensor.nbytes), dtype=dtype).view(tensor.shape)


def _places(
    tensor: Derived | Filled, place: torch.Tensor
) -> Iterator[tuple[TensorRef, torch.Tensor | Decoding]]:
    if isinstance(tensor, TensorRef):
        yield tensor, place
    elif isinstance(tensor, Dequantised):
        decoding = Decoding(tensor, place)
        yield from ((ref, decoding) for ref in dict.fromkeys(tensor.stored.values()))
    elif isinstance(tensor, Filled):
        place.fill_(tensor.value)
    else:
        at = 0
        for part in tensor.parts:
            size = part.shape[tensor.dim] if part.shape else 0
            yield from _places(part, place.narrow(tensor.dim, at, size) if part.shape else place)
            at += size
