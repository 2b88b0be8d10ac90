"""QuantisedByTorchao: the target that quantises the weights of Linears by torchao while they are read.

torchao's own `quantize_` does it, on one Linear at a time, as soon as its weight has arrived. What a configuration
makes of a weight, and whether it runs on this machine, is found on meta before a weight is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload._system.heap import give_back
from shardload.errors import UnsupportedError, Wording
from shardload.model.module_loaders import own_loader
from shardload.model.shell import modules_of
from shardload.placement.quantisation import linears_to_quantise
from shardload.placement.quantisers import torchao
from shardload.placement.quantising import Quantising

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from shardload.keymap import Derived
    from shardload.placement.taken import Taken

_A_NUMBER = (
    20  # bytes for each element of a weight that torchao quantises: results in float32, measured up to 17
)
_BY_NAME = ("FqnToConfig", "ModuleFqnToConfig", "AOPerModuleConfig")


@dataclass(frozen=True)
class TorchaoQuantisation:
    """What torchao makes of weights: `config` is one of its own configurations, such as Int8WeightOnlyConfig.

    `skip` are names of modules that are left alone; None leaves the output layer alone.
    """

    config: Any
    skip: tuple[str, ...] | None = None

    @property
    def kind(self) -> str:
        """The name of torchao's configuration."""
        return type(self.config).__name__

    def takes(self, stored: Iterable[str]) -> bool:  # noqa: ARG002
        """Whether the weights are stored as they are wanted: tensors of torchao are not read."""
        return False

    @classmethod
    def of(cls, config: Any) -> TorchaoQuantisation | None:
        """Return what a configuration of torchao, or transformers' TorchAoConfig, asks for; None for any other."""
        if isinstance(config, cls):
            return config
        if _is_torchaos(config):
            return cls(_settled(config))
        mapping = config if isinstance(config, dict) else getattr(config, "__dict__", {})
        method = mapping.get("quant_method")
        if str(getattr(method, "value", method)) != "torchao":
            return None
        if mapping.get("include_input_output_embeddings") or mapping.get("untie_embedding_weights"):
            raise UnsupportedError(
                "embeddings are not quantised by torchao here",
                cure="leave include_input_output_embeddings and untie_embedding_weights out",
                code="E-QUANT",
            )
        skip = mapping.get("modules_to_not_convert")
        return cls(_settled(mapping.get("quant_type")), None if skip is None else tuple(map(str, skip)))


def _is_torchaos(config: object) -> bool:
    return any(kind.__name__ == "AOBaseConfig" for kind in type(config).__mro__)


def _settled(told: Any) -> Any:
    """Return a configuration of torchao from one, or from what config.json has of it."""
    if isinstance(told, dict) and list(told) == ["default"]:
        told = torchao().core.config.config_from_dict(told["default"])
    if not _is_torchaos(told):
        raise UnsupportedError(
            f"the quant_type {told!r} is no configuration of torchao",
            cure="pass one of torchao.quantization, such as Int8WeightOnlyConfig()",
            code="E-QUANT",
        )
    if type(told).__name__ in _BY_NAME:
        raise UnsupportedError(
            f"{type(told).__name__} has a configuration for each name, and one for all is taken",
            cure="load without, then call torchao's quantize_",
            code="E-QUANT",
        )
    return told


class QuantisedByTorchao(Quantising):
    """Quantises the weights of Linears by torchao as they arrive; all else is done as `OnDevice` does it.

        >>> import shardload
        >>> try:
        ...     from torchao.quantization import Int8WeightOnlyConfig
        ...     kind = shardload.QuantisedByTorchao(Int8WeightOnlyConfig()).kind
        ... except (ImportError, shardload.UnsupportedError):  # torchao is an extra
        ...     kind = "Int8WeightOnlyConfig"
        >>> kind
        'Int8WeightOnlyConfig'

    `quantization_config` is one of torchao's own configurations, or transformers' TorchAoConfig. The Linears stay, and
    their weights are tensors of torchao, equal to those of `quantize_` on the whole model. Tied weights, the output
    layer and `modules_to_not_convert` are left alone. Raises UnsupportedError where torchao is not installed, or can't
    do it on this machine.
    """

    def __init__(
        self,
        quantization_config: Any,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        spill: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(device, dtype, spill)
        wanted = TorchaoQuantisation.of(quantization_config)
        if wanted is None:
            raise UnsupportedError(
                f"{type(quantization_config).__name__} is no configuration of torchao",
                cure="pass one of torchao.quantization, such as Int8WeightOnlyConfig()",
                code="E-QUANT",
            )
        self._wanted_kind, self._package = wanted, torchao()
        self._linears: dict[str, nn.Linear] = {}
        self._left: list[str] = []
        self._sizes: dict[tuple[tuple[int, ...], torch.dtype], int | None] = {}

    @property
    def kind(self) -> str:
        """The name of torchao's configuration."""
        return self._wanted_kind.kind

    @property
    def assigns(self) -> bool:
        """Whether the target assigns tensors of any class: no, a model of such tensors is declined."""
        return False

    def prepare(self, model: nn.Module) -> None:
        """Choose the modules, but none that a module's own loader fills, and try the configuration on meta."""
        loaded = tuple(path for path, module in modules_of(model) if own_loader(module) is not None)
        every = linears_to_quantise(model, ())
        chosen = linears_to_quantise(model, self._wanted_kind.skip)
        # torchao leaves a weight as it is whose rows are no whole groups, for instance.
        chosen = {
            name: each
            for name, each in chosen.items()
            if self._bytes_of(each.weight.shape, self.dtype or each.weight.dtype)
            and not any(f"{name}.".startswith(path) for path in loaded)
        }
        self._linears = {f"{name}.weight": each for name, each in chosen.items()}
        self._left = sorted(every.keys() - chosen.keys())
        sizes = [prod(each.weight.shape) for each in self._linears.values()]
        self.work_space = _A_NUMBER * max(sizes, default=0)

    def result_bytes(self, key: str, tensor: Derived) -> Taken:
        """Return the bytes of the quantised weight; for other tensors what OnDevice states."""
        if key not in self._linears:
            return super().result_bytes(key, tensor)
        dtype = self._wanted(key, floating=tensor.is_floating, real=True) or torch.float32
        nbytes = self._bytes_of(tensor.shape, dtype)
        return self._held(tensor.numel * dtype.itemsize if nbytes is None else nbytes)

    def place(self, key: str, stored: torch.Tensor) -> torch.Tensor:
        """Return the quantised weight of a Linear; for other tensors what OnDevice returns."""
        if key not in self._linears:
            return super().place(key, stored)
        made = self._made(stored.to(self.device, self._dtype_for(key, stored)).contiguous())
        give_back()  # up to 32 MB of each result in between stay on the heap
        return made

    def finish(self, model: nn.Module) -> None:
        """Say what was quantised. A weight that the checkpoint lacks has the class's own value: it is quantised now."""
        super().finish(model)
        for module in self._linears.values():
            if type(module.weight) is nn.Parameter:
                module._parameters["weight"] = self._made(module.weight.detach())
        left = (
            f"; left alone: {', '.join(self._left[:4])}{', …' * (len(self._left) > 4)}" if self._left else ""
        )
        self.notes = [f"{len(self._linears)} Linears are quantised by torchao to {self.kind}{left}"]

    def _bytes_of(self, shape: Sequence[int], dtype: torch.dtype) -> int | None:
        """Return the bytes that torchao makes of a weight, None where it leaves it as it is.

        It is tried on meta, and with zeros on the device where that is refused: some layouts are for one kind of
        device alone, and some for one dtype.
        """
        key = tuple(shape), dtype
        if key not in self._sizes:
            try:
                made = self._made(torch.empty(key[0], dtype=dtype, device="meta"))
            except UnsupportedError:
                made = self._made(torch.zeros(key[0], dtype=dtype, device=self.device))
            left = type(made) is nn.Parameter
            self._sizes[key] = None if left else sum(part.nbytes for part in parts_of(made))
        return self._sizes[key]

    def _made(self, weight: torch.Tensor) -> nn.Parameter:
        """Return torchao's parameter of a weight: what `quantize_` puts into a Linear, or the weight as it is."""
        height, width = weight.shape
        linear = nn.Linear(width, height, bias=False, device="meta")
        linear._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        try:
            self._package.quantization.quantize_(
                linear, self._wanted_kind.config, filter_fn=lambda _module, _name: True
            )
        except (ImportError, AssertionError, ValueError, AttributeError, RuntimeError) as error:
            raise UnsupportedError(
                f"torchao can't quantise a weight of {height}x{width} in {weight.dtype} to {self.kind} here: {error}",
                cure=Wording(
                    "pass another configuration, or leave {quantization_config} out", quantization_config=...
                ),
                code="E-QUANT",
            ) from error
        made: nn.Parameter = linear._parameters["weight"]  # type: ignore[assignment]
        plain = type(made) is nn.Parameter and made.dtype == weight.dtype
        if type(linear) is not nn.Linear or not (plain or hasattr(made, "__tensor_flatten__")):
            raise UnsupportedError(
                f"{self.kind} of torchao changes more of a Linear than its weight",
                cure="load without, then call torchao's quantize_",
                code="E-QUANT",
            )
        return made


def parts_of(tensor: Any) -> list[torch.Tensor]:
    """Return the plain tensors that a tensor of torchao consists of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in parts_of(getattr(tensor, name))]
