"""AnyQuantisation: what a caller asks to quantise weights to, by either package, and the target that does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.placement.device import OnDevice
from shardload.placement.quantisation import Quantisation
from shardload.placement.quantised import Quantised
from shardload.placement.quantised_by_torchao import QuantisedByTorchao, TorchaoQuantisation

if TYPE_CHECKING:
    import os

    import torch

AnyQuantisation = Quantisation | TorchaoQuantisation


def quantisation_of(config: Any, load_in_8bit: bool, load_in_4bit: bool) -> AnyQuantisation | None:
    """Return what is asked for: by torchao for one of its configurations, else by bitsandbytes; None for nothing."""
    if config is None and not load_in_8bit and not load_in_4bit:
        return None
    by_torchao = None if load_in_8bit or load_in_4bit else TorchaoQuantisation.of(config)
    return by_torchao or Quantisation.of(config, load_in_8bit, load_in_4bit)


def target_for(
    wanted: AnyQuantisation | None,
    device: str | torch.device,
    dtype: torch.dtype | None,
    spill: str | os.PathLike[str] | None = None,
) -> OnDevice:
    """Return the target of a load: one that quantises, where that is wanted."""
    if wanted is None:
        return OnDevice(device, dtype, spill)
    by = Quantised if isinstance(wanted, Quantisation) else QuantisedByTorchao
    return by(wanted, device, dtype, spill)
