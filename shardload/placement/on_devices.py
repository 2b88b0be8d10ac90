"""OnDevices: the target that lays a model over several devices, as a device map says.

A target of its own loads what lies on each device. On the processor "disk" means mapped: a weight that keeps its dtype
is a view of its file, which the system reads and drops by need, and a cast one lies in the spill's file. Beside an
accelerator, what lies in memory or on the disk is brought to it while its block runs (see `offloading`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from shardload._system.process_memory import size_of
from shardload.errors import UnsupportedError, UsageError, Wording, keyword
from shardload.model.blocks import Group, groups_of
from shardload.model.shell import modules_of
from shardload.placement.any_quantisation import target_for
from shardload.placement.device import OnDevice
from shardload.placement.device_hooks import install
from shardload.placement.device_map import BESIDE, DeviceMap, DeviceRow, Part, Place, Settled
from shardload.placement.machine import Machine
from shardload.placement.spill import Spill
from shardload.placement.taken import NOTHING, SMALL, Taken
from shardload.placement.target import Target
from shardload.tensor_ref import is_mapped

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from torch import nn

    from shardload.keymap import Derived
    from shardload.model.shell import Slot
    from shardload.placement.any_quantisation import AnyQuantisation
    from shardload.placement.target import Claim, Release


class OnDevices(Target):
    """Puts each part of a model on the device that a map names, and casts floating weights to `dtype` if one is given.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)), "tiny")
        >>> shell = shardload.build_shell(lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)))
        >>> target = shardload.OnDevices({"0": "cpu", "1": "disk"})
        >>> report = shardload.fill(shell, shardload.open_checkpoint("tiny"), target=target)
        >>> [(row.device, row.nbytes, row.blocks) for row in report.devices], shell.model.hf_device_map
        ([('cpu', 80, 1), ('disk', 40, 1)], {'0': 'cpu', '1': 'disk'})

    `device_map` is "auto", "balanced" or "sequential", a device, or a device by names of modules and tensors, of which
    the longest that fits counts; `max_memory` says how many bytes a device may hold, as {0: "20GiB", "cpu": "60GiB"}.
    `spill` is a folder for casts of what lies on the disk. More than one device beside the processor, and offloading,
    are experimental: they have not run on a GPU. Raises UsageError for a map that is none; a load raises UsageError
    for one that does not fit the model, with all faults, and MemoryLimitError where a device can't hold its part.
    """

    def __init__(
        self,
        device_map: Any,
        max_memory: Mapping[Any, Any] | None = None,
        dtype: torch.dtype | None = None,
        spill: str | os.PathLike[str] | None = None,
        *,
        quantised: AnyQuantisation | None = None,
    ) -> None:
        self.map = DeviceMap(device_map, max_memory)
        self.dtype = dtype
        self.spill = None if spill is None else Spill(spill)
        self.machine = Machine()
        self.only_states = False
        """Whether the load is only planned, so that this machine does not have to have the devices."""
        self.settled: Settled | None = None
        self._quantised = quantised
        self._here = target_for(quantised, "cpu", dtype)
        self._on_disk = OnDevice("cpu", dtype, spill)
        self._others: dict[Place, OnDevice] = {}
        self._groups: list[Group] = []
        self._of_quantiser = 0
        self._nbytes: dict[str, int] = {}
        self._unmapped = 0
        self._dtypes: Mapping[str, torch.dtype] = {}

    # What the target inside each device says ------------------------------------------------------------------

    @property
    def assigns(self) -> bool:
        """Whether the target assigns tensors of any class: no, a model of such tensors is declined."""
        return False

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """The dtypes that the model itself wants."""
        return self._dtypes

    @dtypes.setter
    def dtypes(self, wanted: Mapping[str, torch.dtype]) -> None:
        self._dtypes = wanted
        for target in self._targets():
            target.dtypes = wanted

    @property
    def device(self) -> torch.device:
        """The device that the model's inputs go to."""
        accelerators = self.map.accelerators
        if not accelerators and self.map.by_hand is None and self.map.limits is None:
            accelerators = [place for place in self.machine.free() if place != "cpu"]
        return torch.device("cuda" if accelerators and isinstance(accelerators[0], int) else "cpu")

    @property
    def devices(self) -> Sequence[DeviceRow]:  # type: ignore[override]
        """A row per device, once the load is planned."""
        return self.settled.rows if self.settled else ()

    def _targets(self) -> list[OnDevice]:
        return [self._here, self._on_disk, *self._others.values()]

    def _for(self, key: str) -> OnDevice:
        place = self._place(key)
        return self._here if place == "cpu" else self._on_disk if place == "disk" else self._others[place]

    def _place(self, key: str) -> Place:
        if self.settled is None:
            return "cpu"
        place = self.settled.tensors.get(key)
        return self.settled.place(key) if place is None else place

    # Decided on headers ---------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module) -> None:
        """Find the blocks, and let the quantiser choose its modules."""
        self._here.prepare(model)
        self.work_space = self._here.work_space
        self.beside += self._here.beside - self._of_quantiser
        self._of_quantiser = self._here.beside
        self._model, self._groups = model, groups_of(model)

    def takes(self, stored: Mapping[str, Derived]) -> bool:
        """Whether the quantiser takes packed weights as they are stored."""
        return self._here.takes(stored)

    def claims(self, slots: Mapping[str, Slot], stored: Mapping[str, Derived]) -> Sequence[Claim]:
        """Settle where everything lies, by what each slot will hold; return the claims of the quantiser."""
        claims = self._here.claims(slots, stored)
        claimed = {claim.fills[0]: claim for claim in claims}
        parts = []
        for group in self._groups:
            tensors = tuple((names, self._size(names, slots, stored, claimed)) for names in group.tensors)
            computed = frozenset(
                name for names in group.tensors for name in names if not slots[name].is_stored
            )
            parts.append(Part(tuple(name for unit in group.units for name in unit.names), tensors, computed))
        self._nbytes = {name: nbytes for part in parts for names, nbytes in part.tensors for name in names}
        self.settled = self.map.settle(parts, self.machine.free, refuses=not self.only_states)
        self._unmapped = sum(
            tensor.nbytes
            for key, tensor in stored.items()
            if self.settled.tensors.get(key) == "disk" and tensor.numel > SMALL and not is_mapped(tensor)
            and self._on_disk.result_bytes(key, tensor) == NOTHING
        )  # fmt: skip
        self._refuse(stored, {*getattr(self._here, "_linears", ()), *claimed})
        if not self.only_states:
            self._others = {place: self._made(place, slots, stored) for place in self._accelerators()}
        return claims

    def _size(
        self,
        names: tuple[str, ...],
        slots: Mapping[str, Slot],
        stored: Mapping[str, Derived],
        claimed: Mapping[str, Claim],
    ) -> int:
        """Return the bytes that a tensor will take, wherever it lies."""
        for name in names:
            if name in claimed:
                return sum(stored[each].nbytes for each in claimed[name].stored.values())
            tensor = stored.get(name)
            if tensor is not None and slots[name].is_stored:
                taken = self._here.result_bytes(name, tensor)
                return tensor.nbytes if taken == NOTHING else taken.anonymous + taken.spilled
        slot = slots[names[0]]
        floating = slot.is_stored and slot.dtype.is_floating_point and self.dtype is not None
        return (
            slot.nbytes * self.dtype.itemsize // slot.dtype.itemsize
            if floating and self.dtype
            else slot.nbytes
        )

    def _accelerators(self) -> list[Place]:
        settled = self.settled
        return sorted({*settled.tensors.values()} - {*BESIDE}, key=str) if settled else []

    def _refuse(self, stored: Mapping[str, Derived], quantised: set[str]) -> None:
        """Refuse a map that can't be done, before a weight is read."""
        if self.settled is None:
            return
        if self.reads_files:
            taken = self._on_disk.result_bytes
            self.settled.refuse_read_files(key for key in stored if taken(key, stored[key]) == NOTHING)
        over = {self._place(key) for key in quantised}
        if self._quantised is not None and over - {self.settled.main}:
            raise UnsupportedError(
                "weights that are quantised while they are read run where they lie, on the first device: the map puts "
                f"some on {', '.join(sorted(map(str, over - {self.settled.main})))}",
                cure="allow the first device more, or map all blocks to it",
            )
        cast = [
            key for key, place in self.settled.tensors.items()
            if place == "disk" and key in stored and stored[key].numel > SMALL
            and self._on_disk.result_bytes(key, stored[key]).anonymous
        ]  # fmt: skip
        if cast and self.spill is None:
            raise UsageError(
                f"{cast[0]}{f' and {len(cast) - 1} more' if cast[1:] else ''} would be cast, and lie on the disk: "
                "results of a cast are in no file yet",
                cure=Wording("name a folder for them: {spill}", spill=...),
            )

    def _made(self, place: Place, slots: Mapping[str, Slot], stored: Mapping[str, Derived]) -> OnDevice:
        """Return the target of an accelerator. Raises UsageError where this machine has none of that name."""
        quantises = self._quantised is not None and self.settled is not None and place == self.settled.main
        if not quantises:
            try:
                target = self.machine.target(place, self.dtype)
            except UsageError as error:
                raise UsageError(
                    f"the map names {place!r}: {error.what}",
                    where=keyword("device_map"),
                    cure="map its parts to devices that this machine has",
                ) from error
        else:
            target = target_for(self._quantised, self.machine.device(place), self.dtype)
            target.prepare(self._model)
            target.claims(slots, stored)
        target.dtypes = self._dtypes
        return target

    def result_bytes(self, key: str, tensor: Derived) -> Taken:
        """Return what the target of the slot's device states."""
        place = self._place(key)
        if place in BESIDE:
            return self._for(key).result_bytes(key, tensor)
        return Taken(device=self._nbytes.get(key, tensor.nbytes))

    def claim_bytes(self, claim: Claim, parts: Mapping[str, Derived]) -> Taken:
        """Return what packed weights take where they lie."""
        if self._place(claim.fills[0]) in BESIDE:
            return self._here.claim_bytes(claim, parts)
        return Taken(device=sum(part.nbytes for part in parts.values()))

    # While shards are read ------------------------------------------------------------------------------------

    def place(self, key: str, stored: torch.Tensor) -> torch.Tensor:
        """Return what the target of the slot's device returns."""
        return self._for(key).place(key, stored)

    def begin(self, key: str, stored: torch.Tensor, release: Release | None) -> torch.Tensor:
        """Return what the target of the slot's device returns, perhaps before it holds its values."""
        return self._for(key).begin(key, stored, release)

    def make(self, claim: Claim, parts: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Return what the quantiser makes of weights that are stored packed."""
        return self._for(claim.fills[0]).make(claim, parts)

    def put(self, module: nn.Module, name: str, tensor: torch.Tensor) -> None:
        """Assign a tensor; a quantised one as it is."""
        if self._quantised is None:
            super().put(module, name, tensor)
        else:
            self._here.put(module, name, tensor)

    def wait(self) -> None:
        """Return when the tensors of all devices are complete."""
        for target in self._targets():
            target.wait()

    def close(self) -> None:
        """End the threads of all targets."""
        for target in self._targets():
            target.close()

    def finish(self, model: nn.Module) -> None:
        """Move what the class computed to its device, and put hooks on the blocks where there are several devices."""
        settled = self.settled
        if settled is None:
            return
        if self._quantised is not None:
            quantiser = self._others.get(settled.main, self._here)
            quantiser.finish(model)
            self.notes = quantiser.notes
        moved: dict[int, torch.Tensor] = {}
        for path, module in modules_of(model):
            for name, buffer in module._buffers.items():
                place = self._place(path + name)
                if buffer is not None and place not in BESIDE and path + name in settled.tensors:
                    device = self.machine.device(place)
                    module._buffers[name] = moved.setdefault(id(buffer), self.machine.moved(buffer, device))
        install(model, settled, self.machine)
        model.hf_device_map = dict(settled.places)  # type: ignore[assignment]
        self.notes = [*self.notes, *self._said(settled)]

    def _said(self, settled: Settled) -> list[str]:
        beside = [row for row in settled.rows if row.device in BESIDE]
        if settled.main not in BESIDE and beside:
            how = (
                "while the one before it runs"
                if settled.ahead
                else "one at a time, as there is no room for two"
            )
            size = size_of(sum(row.nbytes for row in beside))
            return [
                f"{size} are offloaded: blocks are brought to device {settled.main} to run, fetched {how}"
            ]
        unmapped = self._unmapped
        joined = (
            f"; {size_of(unmapped)} lie in memory, joined or not aligned in their file" if unmapped else ""
        )
        return [
            f"disk: {size_of(row.nbytes - unmapped)} are mapped: views of their files, or of the spill's file if they "
            f"are cast, which the system reads and drops by need; they are ordinary parameters, without hooks{joined}"
            for row in beside
            if row.device == "disk"
        ]
