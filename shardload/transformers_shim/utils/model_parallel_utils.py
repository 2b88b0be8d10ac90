"""`transformers.utils.model_parallel_utils`: layers on several devices, as in releases before 4.3x."""

from __future__ import annotations

from math import ceil


def get_device_map(n_layers: int, devices: list[int]) -> dict[int, list[int]]:
    """Return the layers of each device: in order, and as evenly as possible."""
    size = ceil(n_layers / len(devices))
    layers = list(range(n_layers))
    return {
        device: layers[start : start + size]
        for device, start in zip(devices, range(0, n_layers, size), strict=False)
    }


def assert_device_map(device_map: dict[int, list[int]], num_blocks: int) -> None:
    """Raise ValueError unless every layer is on exactly one device."""
    layers = sorted(layer for some in device_map.values() for layer in some)
    if layers != list(range(num_blocks)):
        raise ValueError(f"the device map places the layers {layers} of {num_blocks}")
