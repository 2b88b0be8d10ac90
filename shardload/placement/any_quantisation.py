"""AnyQuantisation: what a caller asks to quantise weights to, by either package, and the target that does it.

Does not import torch: a plan of a load that quantises nothing does without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Mapping

    import torch

    from shardload.placement.device import OnDevice
    from shardload.placement.quantisation import Quantisation
    from shardload.placement.quantised_by_torchao import TorchaoQuantisation

    AnyQuantisation = Quantisation | TorchaoQuantisation

NOT_ASKED = (None, False)
"""The values of options that ask for nothing: a load whose three options are such ones does not come here."""


def quantisation_of(config: Any, load_in_8bit: bool, load_in_4bit: bool) -> AnyQuantisation:
    """Return what is asked for: by torchao for one of its configurations, else by bitsandbytes."""
    from shardload.placement.quantisation import Quantisation
    from shardload.placement.quantised_by_torchao import TorchaoQuantisation

    by_torchao = None if load_in_8bit or load_in_4bit else TorchaoQuantisation.of(config)
    return by_torchao or Quantisation.of(config, load_in_8bit, load_in_4bit)


def settled(
    asked: AnyQuantisation | None, config: Mapping[str, Any] | None, stored: Collection[str]
) -> tuple[AnyQuantisation | None, bool]:
    """Return what a load without a dtype quantises weights to, and whether they are stored so and stay as they are.

    `config` is config.json, which says what bitsandbytes packed where nothing is asked for; `stored` are all names.
    """
    from shardload.placement.quantisation import Quantisation

    wanted = asked or Quantisation.stored(config)
    return wanted, wanted is not None and wanted.takes(stored)


def target_for(
    wanted: AnyQuantisation | None,
    device: str | torch.device,
    dtype: torch.dtype | None,
    spill: str | os.PathLike[str] | None = None,
) -> OnDevice:
    """Return the target of a load: one that quantises, where that is wanted."""
    from shardload.placement.device import OnDevice
    from shardload.placement.quantisation import Quantisation
    from shardload.placement.quantised import Quantised
    from shardload.placement.quantised_by_torchao import QuantisedByTorchao

    if wanted is None:
        return OnDevice(device, dtype, spill)
    by = Quantised if isinstance(wanted, Quantisation) else QuantisedByTorchao
    return by(wanted, device, dtype, spill)
