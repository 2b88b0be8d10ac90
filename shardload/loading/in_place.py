"""Stand-ins: real parameters for a module's own loader that writes into its parameters instead of replacing them.

torch's `load_state_dict` copies in place by default, so an override may do the same. A write to a meta tensor has no
effect, and a write to the weights of an existing module can't be undone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from shardload.loading.ties import as_bytes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class StandIns:
    """Lends real parameters to a module while it loads itself. `names` are those that the loader writes to.

    The stand-ins begin with `values`, which are the class's own, so a loader that writes a part leaves the rest as
    torch would. NaN marks memory that the class leaves uninitialised.
    """

    def __init__(self, values: Mapping[str, torch.Tensor], names: Collection[str]) -> None:
        self._values = values
        self._names = names

    def lend(self, module: nn.Module, prefix: str) -> list[_Loan]:
        """Replace a module's parameters by stand-ins, and return the loans."""
        loans = []
        for name, parameter in module._parameters.items():
            if parameter is not None and prefix + name in self._names:
                value = self._value(prefix + name, parameter)
                loans.append(_Loan(module, name, parameter, value))
        return loans

    def _value(self, key: str, parameter: nn.Parameter) -> torch.Tensor:
        if not parameter.is_meta:
            return parameter.detach().clone()
        if key in self._values:
            return self._values[key]
        unknown = float("nan") if parameter.is_floating_point() else 0
        return torch.full(parameter.shape, unknown, dtype=parameter.dtype, device="cpu")


class _Loan:
    """One parameter that a stand-in replaces for a while."""

    def __init__(self, module: nn.Module, name: str, parameter: nn.Parameter, value: torch.Tensor) -> None:
        self._module = module
        self.name = name
        self._parameter = parameter
        self._stand_in = nn.Parameter(value, requires_grad=parameter.requires_grad)
        nan = value.isnan() if value.is_floating_point() else None
        self._unwritten = nan if nan is not None and bool(nan.any()) else None
        self._version = self._stand_in._version
        self._sum = _bytes_sum(value)
        module._parameters[name] = self._stand_in

    @property
    def is_untouched(self) -> bool:
        """Whether the module still has the stand-in, with the values that it was lent with."""
        if self._module._parameters.get(self.name) is not self._stand_in:
            return False
        # A write to `.data` does not change the version.
        return self._stand_in._version == self._version and _bytes_sum(self._stand_in.detach()) == self._sum

    def settle(self) -> None:
        """Keep a stand-in that the loader wrote; put the old parameter back if part of it is still uninitialised."""
        if self._module._parameters.get(self.name) is not self._stand_in:
            return
        unwritten = self._unwritten is not None and bool(
            self._stand_in.detach()[self._unwritten].isnan().any()
        )
        if unwritten or (self.is_untouched and not self._parameter.is_meta):
            self._module._parameters[self.name] = self._parameter


def _bytes_sum(tensor: torch.Tensor) -> int:
    return int(as_bytes(tensor).sum()) if tensor.numel() else 0
