"""Asked: the device map of a load, by the keywords of `from_pretrained`. Costs nothing where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardload.errors import UsageError, Wording

if TYPE_CHECKING:
    import os

    import torch

    from shardload.placement.any_quantisation import AnyQuantisation
    from shardload.placement.on_devices import OnDevices


@dataclass(frozen=True)
class Asked:
    """What a load with a device map is asked for, by the keywords of `from_pretrained`."""

    device_map: Any
    limits: Mapping[Any, Any] | None

    @classmethod
    def of(cls, device_map: Any, max_memory: Any, device: str | torch.device, *, copy: bool) -> Asked:
        """Return what is asked for. Raises UsageError for keywords that contradict one another."""
        if str(device) != "cpu":
            raise UsageError(
                Wording(
                    "{device} and {device_map} both say where the weights go", device=..., device_map=...
                ),
                cure="pass one of them",
            )
        from shardload.placement.device_map import DeviceMap

        limits = max_memory if isinstance(max_memory, Mapping) else None
        if copy and "disk" in DeviceMap(device_map, limits).places:
            raise UsageError(
                Wording("{copy} reads into memory what the map leaves on the disk", copy=True),
                cure=Wording('leave {copy} out, or map it to "cpu"', copy=True),
            )
        return cls(device_map, limits)

    def target(
        self,
        quantised: AnyQuantisation | None,
        device: str | torch.device,  # noqa: ARG002
        dtype: torch.dtype | None,
        spill: str | os.PathLike[str] | None,
    ) -> OnDevices:
        """Return the target of the load, in the place of `target_for`."""
        from shardload.placement.on_devices import OnDevices

        return OnDevices(self.device_map, self.limits, dtype, spill, quantised=quantised)


def over_devices(
    device_map: Any, max_memory: Any, device: str | torch.device, *, copy: bool
) -> tuple[Asked, Any]:
    """Return what is asked for by a device map, and the limit of the process that is left."""
    asked = Asked.of(device_map, max_memory, device, copy=copy)
    return asked, max_memory if asked.limits is None else None
