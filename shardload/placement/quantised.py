"""Quantised: the target that quantises the weights of Linears by bitsandbytes while they are read.

A weight is quantised in blocks of rows as it arrives, so a load holds the quantised model and one block. bitsandbytes'
own functions do it: a block of int8 is made of whole rows, one of four bits of whole blocks of the format, so the bytes
are those of the whole weight quantised at once. bitsandbytes' modules take the places of the Linears at the end.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from shardload.dequantise.scheme import BadValuesError, require_finite
from shardload.model.module_loaders import own_loader
from shardload.model.shell import modules_of
from shardload.placement.quantisation import STATE, Quantisation, is_turned, linears, sizes_of
from shardload.placement.quantiser import Quantiser
from shardload.placement.quantisers import bitsandbytes
from shardload.placement.quantising import Quantising
from shardload.placement.taken import NOTHING, Taken
from shardload.placement.target import Claim

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from shardload.keymap import Derived
    from shardload.model.shell import Slot


class Quantised(Quantising):
    """Quantises the weights of Linears by bitsandbytes as they arrive; all else is done as `OnDevice` does it.

        >>> import shardload
        >>> try:
        ...     target = shardload.Quantised(load_in_8bit=True)
        ...     kind = target.quantisation.kind
        ... except shardload.UnsupportedError as error:  # bitsandbytes is an extra
        ...     kind = error.cure.replace("pip install bitsandbytes", "int8")
        >>> kind
        'int8'

    `quantization_config` is transformers' BitsAndBytesConfig, or any object or mapping with its options;
    `load_in_8bit=True` and `load_in_4bit=True` are short for one. Weights that are stored as bitsandbytes packs them,
    in the same kind, are taken as they are. Tied weights, the output layer and `llm_int8_skip_modules` are left alone.
    Raises UnsupportedError where bitsandbytes is not installed.
    """

    def __init__(
        self,
        quantization_config: Any = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        spill: str | os.PathLike[str] | None = None,
        *,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
    ) -> None:
        super().__init__(device, dtype, spill)
        self.quantisation = Quantisation.of(quantization_config, load_in_8bit, load_in_4bit)
        self._package = bitsandbytes()
        self._quantiser = Quantiser(self.quantisation, self.device, self._package)
        self._linears: dict[str, nn.Linear] = {}
        self._all: dict[str, nn.Linear] = {}
        self._late: dict[str, nn.Linear] = {}
        self._sizes: dict[int, tuple[int, int]] = {}

    @property
    def assigns(self) -> bool:
        """Whether the target assigns tensors of any class: no, a model of such tensors is declined."""
        return False

    # Decided on headers ---------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module) -> None:
        """Choose the modules. Those that a module's own loader fills are quantised when it is done."""
        loaded = {path for path, module in modules_of(model) if own_loader(module) is not None}
        every, chosen = linears(model, turned=True), self.quantisation.chosen(model)
        self._sizes = {id(each): sizes_of(each) for each in every.values()}
        inside = {name for name in every if any(f"{name}.".startswith(path) for path in loaded)}
        self._all = {f"{name}.weight": each for name, each in every.items() if name not in inside}
        self._linears = {key: each for key, each in self._all.items() if key[:-7] in chosen}
        self._late = {f"{name}.weight": each for name, each in chosen.items() if name in inside}
        self._state()

    def _state(self) -> None:
        """State what is not a tensor's own: the block that is quantised, and what is quantised last."""
        late = [self._sizes[id(each)] for each in self._late.values()]
        widths = {self._sizes[id(each)][1] for each in (self._linears | self._late).values()}
        whole = max((prod(shape) for shape in late), default=0)
        self.work_space = self._quantiser.work_space(sorted(widths)) + 2 * whole
        self.beside = sum(self._quantiser.nbytes(shape) for shape in late)

    def takes(self, stored: Mapping[str, Derived]) -> bool:
        """Whether weights are stored as bitsandbytes packs them, in the kind that is wanted."""
        return self.quantisation.takes(stored)

    def claims(self, slots: Mapping[str, Slot], stored: Mapping[str, Derived]) -> Sequence[Claim]:  # noqa: ARG002
        """Claim the weights that are stored quantised; the other Linears of such a checkpoint stay plain."""
        if not self.takes(stored):
            return ()
        claims = {key: claim for key in self._all if (claim := self._claim(key, stored)) is not None}
        self._linears = {key: self._all[key] for key in claims}
        self._state()
        return list(claims.values())

    def _claim(self, key: str, stored: Mapping[str, Derived]) -> Claim | None:
        if self.quantisation.kind == "int8":
            beside = {name: f"{key[:-6]}{name}" for name in ("SCB", "weight_format")}
        else:
            beside = {name[len(key) + 1 :]: name for name in stored if name.startswith(f"{key}.")}
        parts = {role: name for role, name in beside.items() if name in stored}
        if key not in stored or not parts or not self._fits(stored[key], self._all[key], parts):
            return None
        return Claim({"weight": key, **parts}, (key,))

    def _fits(self, packed: Derived, module: nn.Linear, parts: Mapping[str, str]) -> bool:
        shape = self._sizes[id(module)]
        if self.quantisation.kind == "int8":
            return packed.dtype == "I8" and packed.shape == shape and "SCB" in parts
        return packed.nbytes == -(-prod(shape) // 2) and f"{STATE}{self.quantisation.kind}" in parts

    def claim_bytes(self, claim: Claim, parts: Mapping[str, Derived]) -> Taken:  # noqa: ARG002
        """Return what packed weights take: nothing on the CPU, where they stay views of the file."""
        nbytes = sum(part.nbytes for part in parts.values())
        return NOTHING if self.device.type == "cpu" else Taken(device=nbytes)

    def result_bytes(self, key: str, tensor: Derived) -> Taken:
        """Return the bytes of the quantised weight; for other tensors what OnDevice states."""
        if key not in self._linears:
            return super().result_bytes(key, tensor)
        nbytes = self._quantiser.nbytes(self._sizes[id(self._linears[key])])
        return self._held(nbytes)

    # While shards are read ------------------------------------------------------------------------------------

    def place(self, key: str, stored: torch.Tensor) -> torch.Tensor:
        """Return the quantised weight of a Linear; for other tensors what OnDevice returns."""
        if key not in self._linears:
            return super().place(key, stored)
        upright = stored.t() if is_turned(self._linears[key]) else stored
        return self._quantiser.parameter(upright, self._dtype_for(key, stored))

    def make(self, claim: Claim, parts: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Return a parameter of bitsandbytes that holds a weight as it is stored."""
        here = {role: part.to(self.device) for role, part in parts.items()}
        packed, modules = here.pop("weight"), self._package.nn
        for role, part in here.items():
            if part.is_floating_point():
                require_finite(role, part)
        if self.quantisation.kind == "int8":
            made = modules.Int8Params(
                packed, requires_grad=False, has_fp16_weights=False, CB=packed, SCB=here["SCB"]
            )
        else:
            made = modules.Params4bit.from_prequantized(packed, quantized_stats=here, device=self.device)
            shape, told = self._sizes[id(self._linears[claim.fills[0]])], tuple(made.quant_state.shape)
            if told != shape:
                why = f"says {list(told)}, and the weight of the model is {list(shape)}"
                raise BadValuesError(f"{STATE}{self.quantisation.kind}", why)
        return {claim.fills[0]: made}

    def close(self) -> None:
        """End the threads that quantise, cast and copy."""
        self._quantiser.close()
        super().close()

    def finish(self, model: nn.Module) -> None:
        """Quantise what modules loaded themselves, and put bitsandbytes' modules in the places of the Linears."""
        super().finish(model)
        try:
            for module in self._late.values():
                weight = module.weight.detach().t() if is_turned(module) else module.weight.detach()
                module._parameters["weight"] = self._quantiser.parameter(weight, weight.dtype)
        finally:
            self._quantiser.close()
        new = {id(module): self._module(module) for module in (self._linears | self._late).values()}
        for parent in model.modules():
            for name, child in parent._modules.items():
                if id(child) in new:
                    parent._modules[name] = new[id(child)]
        config = getattr(model, "config", None)
        if config is not None and new:
            config.quantization_config = self.quantisation.as_done(model, self._package.nn).to_dict()
        left = sorted(key[:-7] for key in self._all.keys() - self._linears.keys())
        shown = f"; left alone: {', '.join(left[:4])}{', …' if len(left) > 4 else ''}" if left else ""
        self.notes = [f"{len(new)} Linears are quantised to {self.quantisation.kind} by bitsandbytes{shown}"]

    def _module(self, linear: nn.Linear) -> nn.Module:
        """Return bitsandbytes' module for a Linear, with its tensors, its hooks and the attributes it was given."""
        out, into = self._sizes[id(linear)]
        sizes, wanted = (into, out, linear.bias is not None), self.quantisation
        made: Any
        if wanted.kind == "int8":
            made = self._package.nn.Linear8bitLt(
                *sizes, has_fp16_weights=False, threshold=wanted.threshold, device="meta"
            )
        else:
            options = {"compress_statistics": wanted.nested, "quant_type": wanted.kind}
            made = self._package.nn.Linear4bit(
                *sizes, wanted.compute_dtype, **options, quant_storage=wanted.storage, device="meta"
            )
            weight: Any = linear.weight
            weight.module, made.quant_state = made, weight.quant_state
            # On processors with AVX512-BF16 the module's first run would round its scales to bfloat16 for good, and
            # raise for sizes that are no multiples of 64: the model could not be saved, or not run.
            made.support_avx512bf16_for_cpu = False
        for name, value in vars(linear).items():
            if name in ("nf", "nx"):
                continue  # of a Conv1D, which it no longer is
            if name not in vars(made) or (name.endswith("_hooks") and value and not vars(made)[name]):
                made.__dict__[name] = value
        made._parameters.update(linear._parameters)
        made.training = linear.training
        return made  # type: ignore[no-any-return]
