"""save_adapter: writes one adapter in PEFT's layout, whole or not at all."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload._system.ranks import together, told_early
from shardload.adapters.adapter import canonical, listing
from shardload.adapters.adapter_config import LayerSetting, adapter_config
from shardload.adapters.attach import not_attached, record_of
from shardload.adapters.fingerprint import METADATA_KEY, fingerprint_of
from shardload.adapters.layers.experts import LoraParameters, layout_of
from shardload.adapters.module_index import ModuleIndex
from shardload.errors import UnsupportedError, UsageError
from shardload.keywords import entry_point_within
from shardload.model.wrapper_tensors import is_wrapper, named
from shardload.placement.model_ranks import ranks_of_call, ranks_of_model
from shardload.writing import Output, OutputShard, write_output
from shardload.writing.model_output import tensor_output

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from shardload._system.progress import ProgressOption
    from shardload.adapters.attached import Attached
    from shardload.adapters.layers import LoraLayer, LoraTerm

_PREFIX = "base_model.model."
_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"


@entry_point_within(partial(told_early, ranks_of_call))
def save_adapter(
    model: nn.Module,
    folder: str | os.PathLike[str],
    name: str = "default",
    *,
    progress: ProgressOption = False,
    verify: bool = False,
    timeout: float = 3600.0,
) -> list[Path]:
    """Write one adapter as PEFT does: adapter_model.safetensors and adapter_config.json; return both paths.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> report = shardload.attach_lora(model, r=2, targets=["0"])
        >>> [file.name for file in shardload.save_adapter(model, "lora")]
        ['adapter_model.safetensors', 'adapter_config.json']
        >>> list(shardload.open_checkpoint("lora/adapter_model.safetensors").tensors)
        ['base_model.model.0.lora_A.weight', 'base_model.model.0.lora_B.weight']

    The files are in `folder` itself, whatever the adapter's name is (PEFT puts all but "default" in a subfolder). The
    tensors keep their present dtypes. The settings are those that the adapter was loaded with; where they no longer
    describe its layers, ranks and scales, these are listed. The file's metadata holds a few values of the base's
    layers, by which `load_adapter` recognises the base.

    An earlier adapter in `folder` is replaced. After a crash the folder has the old adapter, the new one, or no weights
    until the next call completes the new one; never the weights of one with the settings of the other. `progress` and
    `verify` are those of `save`.

    Over ranks (`fully_shard`) all of them call this: the adapter's parts are gathered, the first rank writes, and the
    others wait for it, `timeout` seconds at most.

    Raises UsageError for a name that is not attached and for weights that are on meta, empty, NaN or infinite;
    UnsupportedError for what PEFT's format can't hold; RanksError; UnsafeError, NoSpaceError and CorruptError as
    `save` does.
    """
    with together(partial(ranks_of_model, model), timeout) as ranks:
        with ranks.judging():
            plan = _plan_of(model, name)
            tensors = plan.tensors()
        if any(map(is_wrapper, tensors.values())) or ranks:
            from shardload.adapters.over_ranks import gathered

            tensors = gathered(tensors, ranks)
        with ranks.judging():
            _check(tensors)
        with ranks.judging():  # all have the same tensors
            if ranks.is_first:
                _write(folder, model, plan, tensors, progress=progress, verify=verify)
    return [Path(folder) / _WEIGHTS, Path(folder) / _CONFIG]


def _plan_of(model: nn.Module, name: str) -> _Plan:
    adapters = record_of(model)
    attached = adapters.attached.get(name)
    if attached is None:
        raise not_attached([name], adapters)
    return _Plan(ModuleIndex(model), attached)


def _write(
    folder: str | os.PathLike[str],
    model: nn.Module,
    plan: _Plan,
    tensors: Mapping[str, torch.Tensor],
    *,
    progress: ProgressOption,
    verify: bool,
) -> None:
    config = plan.config(str(getattr(getattr(model, "config", None), "_name_or_path", "") or "") or None)
    # Merged weights are no longer those of the base.
    metadata = {METADATA_KEY: fingerprint_of(plan.base_tensors())} if record_of(model).merged is None else {}
    weights = OutputShard(
        _WEIGHTS,
        tuple(tensor_output(key, tensor) for key, tensor in tensors.items()),
        {"format": "pt", **metadata},
    )
    text = json.dumps(config, indent=2) + "\n"
    output = Output((weights,), beside={_CONFIG: text.encode()}, alone=False)
    write_output(folder, output, replace=True, verify=verify, progress=progress)


class _Plan:
    """The content of one adapter under the names of the model that it is attached to."""

    def __init__(self, index: ModuleIndex, attached: Attached) -> None:
        self.attached = attached
        self.index = index
        self.paths: dict[int, str] = {}
        for path, module in index.modules.items():
            self.paths.setdefault(id(module), path)
        self.adapted = {id(layer) for layer in attached.layers}
        self.settings: list[LayerSetting] = []

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by their keys in PEFT's file, and collect the settings of each layer."""
        found: dict[str, torch.Tensor] = {}
        rows: set[int] = set()  # those of an embedding are written once, not for all that is tied to it
        for layer in self.attached.layers:
            path = self.paths.get(id(layer))
            if path is None:
                raise UsageError(
                    "the adapter repeats layers of the base and is not active, so its layers are not in the model",
                    cure="make it active, then save it",
                )
            for term, end, tensors, rank in self._stored(layer):
                inner = self._key(path, end)
                own = {part: tensor for part, tensor in tensors.items() if id(tensor) not in rows}
                found.update({f"{inner}.{part}": tensor for part, tensor in own.items()})
                if rank:
                    self.settings.append(_setting(layer, path, term, rank))
                else:
                    rows.update(map(id, own.values()))
        for replaced in self.attached.replaced:
            path = canonical(self.paths[id(replaced.module)])
            # PEFT wraps a targeted layer; the base's own tensors are inside the wrapper.
            inner = f"{path}.base_layer" if id(replaced.module) in self.adapted else path
            key = f"{inner}.{replaced.attribute}" if inner else replaced.attribute
            found[_PREFIX + key] = replaced.own
        return found

    def _stored(self, layer: LoraLayer) -> Iterator[tuple[LoraTerm, str, dict[str, torch.Tensor], int]]:
        """Yield each adapted tensor of a layer: its term, the text between path and part, the tensors, the rank."""
        changes = list(layer.lora_changes(self.attached.name))
        for place, (_, term, factors) in enumerate(changes):
            rank, tensors = term.stored(factors)
            # PEFT wraps one parameter after the other, so the last one is outermost.
            yield term, ".base_layer" * (len(changes) - 1 - place), tensors, rank

    def _key(self, path: str, end: str) -> str:
        parent = self.index.parents.get(path)
        clean = canonical(path)
        if isinstance(parent, nn.MultiheadAttention) and id(parent) in self.adapted:
            head, _, last = clean.rpartition(".")
            clean = f"{head}.base_layer.{last}" if head else f"base_layer.{last}"
        return f"{_PREFIX}{clean}{end}"

    def config(self, base: str | None) -> dict[str, Any]:
        """Return the adapter_config.json."""
        given = self.attached.config
        facts: dict[str, Any] = {}
        if not (given or {}).get("base_model_name_or_path"):
            facts["base_model_name_or_path"] = base
        return adapter_config(given, self.settings, list(self.index.modules), **facts)

    def base_tensors(self) -> dict[str, torch.Tensor]:
        """Return the base's tensors that the adapter changes, by their names."""
        found: dict[str, torch.Tensor] = {}
        for layer in self.attached.layers:
            for module, term, _ in layer.lora_changes(self.attached.name):
                tensor = module._parameters.get(term.attribute)
                if tensor is not None:
                    found[f"{canonical(self.paths[id(module)])}.{term.attribute}"] = tensor
        return found


def _setting(layer: LoraLayer, path: str, term: LoraTerm, rank: int) -> LayerSetting:
    """Return what the config must say of one adapted tensor of a layer."""
    own = isinstance(layer, LoraParameters)
    return LayerSetting(
        path,
        rank,
        term.scale,
        term.dropout,
        parameter=term.attribute if own else "",
        layout=layout_of(layer, term) if own else "",
    )


def _check(tensors: dict[str, torch.Tensor]) -> None:
    wrong = []
    wrapped = named((key, tensor) for key, tensor in tensors.items() if is_wrapper(tensor))
    if wrapped:
        raise UnsupportedError(
            "the adapter's weights are wrappers of other tensors, so nothing was written", where=wrapped
        )
    for key, tensor in tensors.items():
        if tensor.is_meta or not tensor.numel():
            wrong.append(f"{key} is {'on meta' if tensor.is_meta else 'empty (sharded, and not gathered)'}")
        elif tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            wrong.append(f"{key} holds NaN or Inf")
    if wrong:
        raise UsageError(
            "the adapter has weights that could not be loaded again, so nothing was written",
            where=listing(wrong),
            cure="check the training, or load or gather the model first",
        )
