"""convert: writes a checkpoint anew, with other names, tensors, dtypes or shards, or in another format."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

from shardload._system.byte_size import parse_size
from shardload.checkpoint.opened import opened
from shardload.dtypes import float_code, torch_dtype
from shardload.errors import UnsupportedError, UsageError, Wording
from shardload.keymap import KeyMap, as_view
from shardload.keywords import entry_point
from shardload.tensor_ref import TORCH_NAMES
from shardload.writing import FileRange, Output, OutputTensor, split_into_shards, write_output
from shardload.writing.blocks import row_blocks
from shardload.writing.repo_files import files_beside, with_dtype

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from typing_extensions import Unpack

    from shardload._system.progress import ProgressOption
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.keymap import Derived, Names
    from shardload.keywords import WhereKeywords
    from shardload.where import WhereLike
    from shardload.writing import Written
    from shardload.writing.output import OutputShard


@entry_point
def convert(
    where: WhereLike | Checkpoint,
    folder: str | os.PathLike[str],
    *,
    key_map: KeyMap | Names | str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype = "auto",
    max_shard_size: str | int = "5GB",
    verify: bool = True,
    progress: ProgressOption = None,
    float32: Collection[str] = (),
    format: Literal["safetensors", "dcp"] = "safetensors",  # noqa: A002 - as the command has it
    **keywords: Unpack[WhereKeywords],
) -> Written:
    """Write a checkpoint as safetensors shards with an index, or as a distributed checkpoint; return what was written.

        >>> import torch, shardload
        >>> torch.save({"module.weight": torch.ones(2, 4)}, "model.bin")
        >>> written = shardload.convert("model.bin", "out", key_map={"module.{...}": "{...}"}, dtype="float16")
        >>> [file.name for file in written.files]
        ['model.safetensors']
        >>> shardload.open_checkpoint("out").tensors["weight"].dtype
        'F16'

    `key_map` renames, cuts and joins tensors. `dtype` casts floating-point tensors of 16 bits or more; those
    that `float32` names are written in float32, whatever `dtype` is. No class is asked which these are: the command
    asks the one that config.json names.
    `max_shard_size` is bytes or a text such as "5GB". The kernel copies unchanged tensors; computed ones pass through
    memory in blocks of at most 64 MiB (or one row, where a row is larger). The repo's settings, tokenizer and code are
    copied, config.json with the new dtype. `verify` reads every file back.

    `format="dcp"` writes a distributed checkpoint, which `torch.distributed.checkpoint.load` reads: `.metadata` and
    `.distcp` files. A trainer that loads {"model": state_dict} wants key_map={"{...}": "model.{...}"}.

    `folder` is new, or holds no weights and no files of these names. Files appear in it when all are complete. After a
    kill the same call continues from the finished files. The other keywords are those of `open_checkpoint`. Raises
    UsageError, UnsupportedError, UnsafeError, NoSpaceError, CorruptError.
    """
    (checkpoint,) = opened(keywords, where)
    code = float_code(dtype)
    if code is not None and checkpoint.may_be_packed:
        from shardload.checkpoint.plain_weights import dequantised

        checkpoint = dequantised(checkpoint, dtype)
    rules = KeyMap.of(key_map)
    mapped = rules.map_headers(checkpoint.tensors)
    rules.require_fit(checkpoint.tensors, mapped)
    _refuse_objects(checkpoint, rules, mapped.tensors)
    limit = parse_size(max_shard_size)
    _refuse_unknown(float32, mapped.tensors)
    write = {"safetensors": _output, "dcp": _blocks_of}.get(format)
    if write is None:
        raise UsageError(f"{format!r} is no format to write", cure=Wording("pass {format}", format="dcp"))
    tensors = [
        write(checkpoint, name, tensor, "F32" if name in float32 else code)
        for name, tensor in mapped.tensors.items()
    ]
    if not tensors:
        raise UsageError("the key map leaves nothing to write", where=checkpoint.label)
    shards, index = _arranged(tensors, limit, format)
    config = (
        checkpoint.config and with_dtype(checkpoint.config, TORCH_NAMES[code]) if code else checkpoint.config
    )
    beside: dict[str, bytes | Path] = {}
    if checkpoint.named is None:
        beside = files_beside(checkpoint, config)
    elif checkpoint.format == "gguf" and config:
        beside = {"config.json": json.dumps(config, indent=2).encode()}
    output = Output(shards, index, beside, _folders(checkpoint))
    identities = list(checkpoint.identities.items())
    job = json.dumps([rules.to_json(), code, sorted(float32), limit, checkpoint.label, identities, format])
    return write_output(folder, output, job=job, verify=verify, progress=progress)


def _arranged(
    tensors: Sequence[OutputTensor], limit: int, name: str
) -> tuple[tuple[OutputShard, ...], tuple[str, bytes] | None]:
    if name == "safetensors":
        return split_into_shards(tensors, limit)
    from shardload.writing.dcp_file import distributed_shards

    return distributed_shards(tensors, limit)


def _refuse_unknown(names: Collection[str], tensors: Mapping[str, Derived]) -> None:
    unknown = [name for name in names if name not in tensors]
    if unknown:
        raise UsageError(
            Wording("{0} names in {float32} are none of the new checkpoint's", len(unknown), float32=...),
            where=", ".join(unknown[:5]),
        )


def _output(checkpoint: Checkpoint, name: str, tensor: Derived, code: str | None) -> OutputTensor:
    """Return one output tensor: a range of its file where its bytes do not change, else row blocks."""
    out_code = tensor.dtype if code is None or not tensor.is_floating else code
    if out_code == "C128":
        raise UnsupportedError("safetensors has no place for complex128", where=name)
    view = as_view(tensor)
    if view is not None and view.strides is None and out_code == tensor.dtype:
        path = checkpoint.source.open(view.shard).local_path()
        content = FileRange(path, view.span.start, checkpoint.identities.get(view.shard))
        return OutputTensor(name, out_code, tensor.shape, content)
    return _blocks_of(checkpoint, name, tensor, code)


def _blocks_of(checkpoint: Checkpoint, name: str, tensor: Derived, code: str | None) -> OutputTensor:
    """Return one output tensor that passes through memory in blocks of rows."""
    out_code = tensor.dtype if code is None or not tensor.is_floating else code

    def blocks() -> Iterator[torch.Tensor]:
        wanted = torch_dtype(TORCH_NAMES[out_code])
        for piece in row_blocks(tensor):
            yield checkpoint.read_derived(piece).to(wanted).contiguous()

    return OutputTensor(name, out_code, tensor.shape, blocks)


def _refuse_objects(checkpoint: Checkpoint, rules: KeyMap, tensors: Mapping[str, Derived]) -> None:
    kept = [old for old, new in rules.map_objects(checkpoint.objects, tensors).items() if new is not None]
    if kept:
        raise UsageError(
            f"the checkpoint holds {len(kept)} entries that are no tensors, and safetensors holds only tensors",
            where=f"{checkpoint.label}: {', '.join(kept[:5])}",
            cure=Wording("drop them: {key_map}", key_map={kept[0]: None}),
        )


def _folders(checkpoint: Checkpoint) -> tuple[Path, ...]:
    if not checkpoint.source.is_local or checkpoint.named is not None:
        return ()  # the folder of a file that was named alone may hold other files
    return tuple(
        {checkpoint.source.open(shard.name).local_path().parent: None for shard in checkpoint.shards}
    )
