"""Spread: a device map that is only planned, for devices that this machine may lack."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shardload.errors import UsageError, Wording
from shardload.placement.asked_devices import Asked
from shardload.placement.device_map import BESIDE, DeviceMap
from shardload.placement.named_blocks import NOTE, parts_by_name
from shardload.placement.taken import NOTHING, Taken, taken_on_device

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from shardload.keymap import Derived
    from shardload.placement.any_quantisation import AnyQuantisation
    from shardload.placement.device_map import DeviceRow, Place
    from shardload.placement.on_devices import OnDevices


class Spread:
    """A plan with a device map: by the names in the checkpoint, or by the modules of a shell. `rows` are its result.

    Raises UsageError for a map, or limits, that are none.
    """

    def __init__(self, device_map: Any, max_memory: Any, device: str | torch.device, copy: bool) -> None:
        if device_map is None:
            raise UsageError(
                Wording("{max_memory} says what each device may hold, and there is no map", max_memory=...),
                cure=Wording("pass {device_map}, or compare the limit with peak_anon", device_map="auto"),
            )
        self._asked = Asked.of(device_map, max_memory, device, copy=copy)
        self._map = DeviceMap(device_map, max_memory)
        self._target: OnDevices | None = None
        self._rows: list[DeviceRow] = []
        self.said = "by a map" if isinstance(device_map, Mapping) else str(device_map)

    @property
    def rows(self) -> list[DeviceRow]:
        """What lies on each device."""
        return list(self._target.devices) if self._target else self._rows

    @property
    def notes(self) -> list[str]:
        """What names alone do not tell."""
        return [] if self._target else [NOTE]

    def by_name(
        self, tensors: Mapping[str, Derived], code: str | None, *, reads_files: bool = False
    ) -> Callable[[str, Derived], Taken]:
        """Settle the map by names; return what says how much memory a tensor takes."""
        nbytes = {name: _nbytes(tensor, code) for name, tensor in tensors.items()}
        settled = self._map.settle(parts_by_name(nbytes), _free, refuses=False)
        if reads_files:
            views = (name for name, tensor in tensors.items() if taken_on_device(tensor, code) == NOTHING)
            settled.refuse_read_files(views)
        self._rows = list(settled.rows)

        def taken(name: str, tensor: Derived) -> Taken:
            place = settled.tensors[name]
            kind = "cpu" if place in BESIDE else "cuda"
            return taken_on_device(tensor, code, device=kind, spills=place == "disk")

        return taken

    def target(
        self, quantised: AnyQuantisation | None, device: str | torch.device, dtype: torch.dtype | None
    ) -> OnDevices:
        """Return a target that only states what a load takes, in the place of `target_for`."""
        target = self._asked.target(quantised, device, dtype, tempfile.gettempdir())  # no file is made
        target.only_states = True
        self._target = target
        return target


def _nbytes(tensor: Derived, code: str | None) -> int:
    taken = taken_on_device(tensor, code)
    return tensor.nbytes if taken == NOTHING else taken.anonymous


def _free() -> Mapping[Place, int]:
    from shardload.placement.machine import Machine

    return Machine().free()
