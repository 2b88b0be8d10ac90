"""What a folder or a repo without a checkpoint holds instead, by the names of its files."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.checkpoint.sources.source import Source


def cure_by_names(source: Source, names: Sequence[str]) -> str | None:
    """Return the cure for weights in a format that is known by its files' names; None for any other."""
    folders = sorted({name.rpartition("/")[0] for name in names if name.endswith(".distcp")})
    if folders:
        folder = f"{source.label}/{folders[0]}".rstrip("/")
        tool = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
        return (
            "it is a distributed checkpoint of torch, which this version does not read: make one file of it with "
            f"`{tool} {quote(folder)} model.pt`, and load that"
        )
    others = [name for name in names if name.endswith((".gguf", ".ggml"))]
    if others:
        return f"{others[0]} is a file of llama.cpp: use the repo that it was converted from"
    return None
