"""Machine: the devices that a map names, and how tensors get from one to another.

All that touches a device beside the processor is here and in `pinned_ring`. It has not run on a GPU yet; the tests put
a machine in its place whose devices are the processor's memory under other names, and which says so when a computation
mixes tensors of two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from shardload._system.read_ahead import free_memory
from shardload._system.worker_pool import worker_pool
from shardload.placement.device import OnDevice
from shardload.placement.pinned_ring import CudaCopies, PinnedRing

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from shardload.placement.device_map import Place

Fetched = Callable[[], list[torch.Tensor]]
"""Returns tensors on another device once they have arrived. Raises the error of a copy."""


class Machine:
    """The devices of this machine. A device is what `device` returns for a place; nothing else is known of it."""

    def __init__(self) -> None:
        self._rings: dict[Any, PinnedRing] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle without threads and buffers: they are made when they are needed."""
        return type(self), ()

    def free(self) -> dict[Place, int]:
        """Return the bytes that are free on each accelerator and for the processor."""
        free: dict[Place, int] = {}
        if torch.cuda.is_available():
            free |= {
                number: torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count())
            }
        return {**free, "cpu": free_memory()}

    def device(self, place: Place) -> Any:
        """Return the device of a place; the disk is the processor's."""
        if isinstance(place, int):
            return torch.device("cuda", place)
        return torch.device("cpu" if place == "disk" else place)

    def target(self, place: Place, dtype: torch.dtype | None) -> OnDevice:
        """Return what loads weights onto a device. Raises UsageError where this machine has no such device."""
        return OnDevice(self.device(place), dtype)

    def where(self, tensor: torch.Tensor) -> Any:
        """Return the device of a tensor."""
        return tensor.device

    def moved(self, tensor: torch.Tensor, device: Any) -> torch.Tensor:
        """Return a tensor on a device, itself if it is there; gradients flow back."""
        return tensor.to(device)

    def fetch(self, tensors: Sequence[torch.Tensor], device: Any) -> Fetched:
        """Begin to copy tensors to a device, without gradients; on a GPU the copies run beside the caller's work."""
        if device.type != "cuda":
            with torch.no_grad():
                here = [tensor.detach().to(device) for tensor in tensors]
            return lambda: here
        ring = self._rings.get(device)
        if ring is None:
            ring = self._rings[device] = PinnedRing(CudaCopies(device))
        # Made here and not on the worker: the copies wait for what the caller's stream has begun so far, and no more.
        results = [ring.empty(tensor) if tensor.is_cpu else tensor.detach().to(device) for tensor in tensors]
        pairs = [(s.detach(), r) for s, r in zip(tensors, results, strict=True) if s.is_cpu]

        def copy() -> list[torch.Tensor]:
            try:
                for source, result in pairs:
                    ring.begin(source, source.dtype, into=result)
                ring.wait()
            except BaseException:
                ring.close()  # what was begun behind the error is not waited for by the next call
                raise
            return results

        if self._pool is None:
            self._pool = worker_pool(1, "shardload-fetch")
        return self._pool.submit(copy).result
