"""save: writes a model as safetensors shards with its settings and its repo's code."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload._system.byte_size import parse_size
from shardload._system.ranks import together, told_early
from shardload.errors import UnsupportedError, UsageError
from shardload.keymap import KeyMap
from shardload.keywords import entry_point_within
from shardload.model.shell import modules_of
from shardload.model.wrapper_tensors import is_wrapper
from shardload.placement.model_ranks import ranks_of_call, ranks_of_model
from shardload.transformers_classes import conversions, library_class
from shardload.transformers_classes.declared_ties import written_apart
from shardload.transformers_classes.left_out import left_out
from shardload.writing import write_output
from shardload.writing.model_output import model_output
from shardload.writing.repo_files import is_untied, repo_files

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from shardload._system.progress import ProgressOption
    from shardload.keymap import Names
    from shardload.keymap.rule import Rule


@entry_point_within(partial(told_early, ranks_of_call))
def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    max_shard_size: str | int = "5GB",
    key_map: KeyMap | Names | str | os.PathLike[str] | None = None,
    progress: ProgressOption = False,
    verify: bool = False,
    timeout: float = 3600.0,
) -> list[Path]:
    """Write a model as safetensors shards, index, settings and its repo's code; return the files written.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
        >>> files = shardload.save(model, "out", max_shard_size="40kB")
        >>> [file.name for file in files][-1], len(files)
        ('model.safetensors.index.json', 3)
        >>> len(shardload.open_checkpoint("out").tensors)
        6

    The settings are config.json and generation_config.json, where the model has them. The code is what `auto_map`
    names, so that `from_pretrained(folder, trust_remote_code=True)` loads the model again. Adapters are left out, and a
    warning names them. `key_map` is the map that the model was loaded through; tensors are written through its inverse.
    Tied parameters are written once. Of a class of transformers that is true of the names that it declares: any other
    name of a shared tensor, such as those of a layer that stands in two places, is written too. Weights on the CPU are
    written without a copy; tensors that are on a GPU, joined by the key map or not contiguous pass through memory in
    blocks of 64 MiB.

    Files appear in `folder` when all are complete. An earlier save with the same file names is replaced: after a crash
    the folder has the old checkpoint, the new one, or no checkpoint until the next call completes the new one. After a
    kill the next call keeps finished shards that are equal to the model's tensors.

    A model that torch sharded over ranks is saved by all of them together: each writes files of its own, at least one
    where there are enough tensors, and the first rank the index and the files beside. No rank gathers more than one
    tensor at a time. Files appear when all ranks are done, and `timeout` is how many seconds a rank waits for the
    others. Stages of a pipeline that lie on slices of one mesh make one checkpoint: all of them call this with one
    folder, and of a tensor that several have, the first stage's is written.

    `max_shard_size` is bytes or a text such as "5GB" (powers of ten) or "5GiB". `progress` works as in
    `from_pretrained`, but the default shows nothing. `verify` reads every shard back from the disk. Raises UsageError,
    UnsupportedError, UnsafeError, NoSpaceError, CorruptError, RanksError.
    """
    if not hasattr(model, "state_dict"):
        raise UsageError(f"save takes a model, not a {type(model).__name__}")
    with together(partial(ranks_of_model, model), timeout) as ranks:
        with ranks.judging():
            limit = parse_size(max_shard_size)
            _refuse_rounded_scales(model)
            state = _state_dict(model)
            beside = repo_files(
                model, _code_of, untied=is_untied(model, state), architecture=library_class(model)
            )
            written_through = _map_of(model, state, key_map)
        options: Any = {"verify": verify, "progress": progress}
        if ranks:
            from shardload.writing.collective import write_together

            output = write_together(folder, state, written_through, limit, beside, ranks, **options)
        else:
            output = model_output(_local(state), written_through, limit, beside)
            write_output(folder, output, replace=True, **options)
    weights = [name for name in output.names if name not in beside]
    return [Path(folder) / name for name in (*weights, *beside)]


def _refuse_rounded_scales(model: nn.Module) -> None:
    """Raise UnsupportedError where bitsandbytes has rounded scales of 4 bits to bfloat16, for good."""
    if "bitsandbytes" not in sys.modules:
        return
    # Its modules say so of each weight at their first run on a processor with AVX512-BF16, and when they undo the rest.
    rounded = [
        name
        for name, module in model.named_modules()
        if hasattr(getattr(getattr(module, "weight", None), "quant_state", None), "packing_format_for_cpu")
    ]
    if rounded:
        raise UnsupportedError(
            f"bitsandbytes rounded the scales of {len(rounded)} weights of 4 bits to bfloat16 when the model was run "
            "on this processor: what would be written is not what was loaded",
            where=", ".join(rounded[:4]),
            cure="load the model again and save it before it is run, or load it by shardload, which keeps the scales",
        )


def _local(state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return a state dict with plain tensors where this process alone holds those of a mesh."""
    if not any(map(is_wrapper, state.values())) or not torch.distributed.is_available():
        return state
    from shardload.writing.collective import local

    return local(state)


def _map_of(
    model: nn.Module, state: Mapping[str, torch.Tensor], given: KeyMap | Names | str | os.PathLike[str] | None
) -> KeyMap:
    """Return the map that checkpoints of the model are read through: the caller's, then that of the model's classes."""
    rules = KeyMap.of(given).rules
    if given is not None and not rules:
        return KeyMap()  # the model's own names are asked for
    return KeyMap((*rules, *_rules_of_classes(model, state)))


def _rules_of_classes(model: nn.Module, state: Mapping[str, torch.Tensor]) -> tuple[Rule, ...]:
    # No model can have been loaded before this is imported.
    if "shardload.loading.provenance" in sys.modules:
        from shardload.loading.provenance import CONVERSIONS

        loaded: tuple[Rule, ...] | None = CONVERSIONS.of(model)
        if loaded is not None:
            return loaded
    return conversions(set(map(type, model.modules())), modules_of(model), state)


def _state_dict(model: nn.Module) -> Mapping[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    # No adapter can be attached before this is imported.
    if "shardload.adapters" in sys.modules and isinstance(model, nn.Module):
        from shardload.adapters.base_state import without_adapters

        state = without_adapters(model, state)
    if not isinstance(model, nn.Module):
        return state
    computed = left_out(model)
    kept = {name: tensor for name, tensor in state.items() if name not in computed}
    return written_apart(modules_of(model), kept)


def _code_of(model: nn.Module, auto_map: Mapping[str, Any]) -> tuple[dict[str, bytes], dict[str, Any]]:
    from shardload.remote_code.export import exported_code

    return exported_code(model, auto_map)
