"""OnDevice: the target that casts floating weights to a dtype and moves all tensors to a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from shardload.errors import UsageError, Wording, keyword
from shardload.placement.casting import Casts
from shardload.placement.pinned_ring import CudaCopies, PinnedRing
from shardload.placement.spill import Spill
from shardload.placement.taken import NOTHING, taken_as
from shardload.placement.target import Target
from shardload.placement.whole_numbers import as_whole_numbers
from shardload.tensor_ref import TORCH_NAMES

if TYPE_CHECKING:
    import os

    from torch import nn

    from shardload.keymap import Derived
    from shardload.placement.taken import Taken
    from shardload.placement.target import Release

_CASTABLE = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_CODES = {f"torch.{name}": code for code, name in TORCH_NAMES.items()}


class OnDevice(Target):
    """Puts weights on one device, and casts floating weights to `dtype` if one is given.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> model = torch.nn.Linear(4, 2)
        >>> target = shardload.OnDevice(dtype=torch.float16)
        >>> report = shardload.fill(model, shardload.open_checkpoint("tiny"), target=target)
        >>> model.weight.dtype
        torch.float16

    Integers, bool, fp8 and complex keep their dtype; so do computed buffers. A slot of integers or bool gets its own
    dtype, as torch's own loader gives it, and weights that the class keeps in float32 (`_keep_in_fp32_modules`) are
    loaded in float32. On the CPU, a weight that needs no cast stays a view of its file. `spill` is a folder for a file
    that holds the results of casts: the kernel can write the pages of that file out and drop them, so a checkpoint
    larger than the memory can be cast.
    """

    def __init__(
        self,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        spill: str | os.PathLike[str] | None = None,
    ) -> None:
        self.device = _device(device)
        self.dtype = dtype
        self.spill = None if spill is None else Spill(spill)
        # Both are made when the first tensor needs them: most loads keep every weight as it is stored.
        self._keeps = dtype is None and self.device.type == "cpu"
        self._casts: Casts | None = None
        self._ring: PinnedRing | None = None

    def result_bytes(self, key: str, tensor: Derived) -> Taken:
        """Return the bytes that the result of a cast or of a move takes; none for a tensor that needs neither."""
        if self._keeps and key not in self.dtypes:
            return NOTHING
        wanted = self._wanted(key, floating=tensor.is_floating, real=not tensor.dtype.startswith("C"))
        code = tensor.dtype if wanted is None else _CODES[str(wanted)]
        return taken_as(tensor, code, device=self.device.type, spills=self.spill is not None)

    def place(self, key: str, stored: torch.Tensor) -> torch.Tensor:
        """Return `stored` after cast and move; the same object if it needs neither.

        Raises MismatchError where a slot of integers or bool can't hold the stored values.
        """
        dtype = self._dtype_for(key, stored)
        if dtype == stored.dtype and stored.device == self.device:
            return stored
        if _counts(dtype) and dtype != stored.dtype:
            return as_whole_numbers(key, stored, dtype).to(self.device)
        if not self._casts_here(stored, dtype):
            return stored.to(device=self.device, dtype=dtype)
        casts = self._casting()
        placed = casts.begin(stored, dtype)
        casts.wait()
        return placed

    def begin(self, key: str, stored: torch.Tensor, release: Release | None) -> torch.Tensor:
        """Return the tensor that `place` returns, perhaps before its cast or copy is done: see `wait`."""
        if (
            self._keeps
            and key not in self.dtypes
            and self._ring is None
            and stored.is_cpu
            and type(self).place is OnDevice.place
        ):
            return stored  # most loads: one test in place of six calls for each of many small tensors
        dtype = self._dtype_for(key, stored)
        if _counts(dtype) and dtype != stored.dtype:
            placed = self.place(key, stored)
            if release is not None:
                release(0, stored.nbytes)
            return placed
        if stored.device.type == "cpu" and (ring := self._way_to_gpu()) is not None:
            return ring.begin(stored, dtype, release)
        if self._casts_here(stored, dtype):
            return self._casting().begin(stored, dtype, release)
        placed = self.place(key, stored)
        if placed is not stored and release is not None:
            release(0, stored.nbytes)
        return placed

    def wait(self) -> None:
        """Return when all casts and copies are done. Raises the first error of one."""
        if self._casts is not None:
            self._casts.wait()
        if self._ring is not None:
            self._ring.wait()

    def close(self) -> None:
        """End the threads that cast and copy."""
        if self._casts is not None:
            self._casts.close()
        elif self.spill is not None:
            self.spill.close()
        if self._ring is not None:
            self._ring.close()

    def finish(self, model: nn.Module) -> None:
        """Move the buffers to the device: the class computed some of them on the CPU."""
        if self.device.type == "cpu":
            return
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)

    def _casting(self) -> Casts:
        if self._casts is None:
            self._casts = Casts(self.spill)
        return self._casts

    def _way_to_gpu(self) -> PinnedRing | None:
        if self._ring is None and self.device.type == "cuda":
            self._ring = PinnedRing(CudaCopies(self.device))
        return self._ring

    def _dtype_for(self, key: str, stored: torch.Tensor) -> torch.dtype:
        floating, real = stored.dtype in _CASTABLE, not stored.dtype.is_complex
        return self._wanted(key, floating=floating, real=real) or stored.dtype

    def _wanted(self, key: str, *, floating: bool, real: bool) -> torch.dtype | None:
        """Return the dtype for a stored tensor: the one that the model itself wants, else the target's; or None."""
        own = self.dtypes.get(key)
        if own is None or str(own) not in _CODES:
            fits = False
        else:
            fits = floating if own.is_floating_point else real or not own.is_complex
        return own if fits else self.dtype if floating else None

    def _casts_here(self, stored: torch.Tensor, dtype: torch.dtype) -> bool:
        return dtype != stored.dtype and self.device.type == stored.device.type == "cpu"


def _counts(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)


def _device(device: str | torch.device) -> torch.device:
    if isinstance(device, dict) or device == "auto":
        raise UsageError(
            "a map of devices is no device",
            where=keyword("device", device),
            cure=Wording("pass {device_map}", device_map=device),
        )
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            Wording("{device} is not a device", device=device), cure='pass "cpu" or "cuda"'
        ) from error
    if found.type == "meta":
        raise UsageError(
            "nothing can be loaded to the meta device: it holds no values",
            cure="use build_shell for a model without weights",
        )
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "this machine has no CUDA device that torch can use",
            where=keyword("device", device),
            cure='pass "cpu"',
        )
    try:
        torch.empty(0, device=found)
    except Exception as error:
        raise UsageError(
            f"torch can't use the device {found}: {error}", where=keyword("device", device), cure='pass "cpu"'
        ) from error
    return found
