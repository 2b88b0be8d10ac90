"""Writes safetensors checkpoints streamed: the layout is known first, the bytes follow a block at a time.

An `Output` says what the files will be: tensors as ranges of other files, or as functions that give row blocks;
whole files that stay as they are; and what stands beside the weights. `write_output` carries it out: every file in a
staging folder inside the target, flushed, then journaled; all of them moved in at the end, an index last. A killed
run leaves nothing that could be taken for a checkpoint, and the same call again goes on where it stopped.

    shard = OutputShard("model.safetensors", (
        OutputTensor("embed.weight", "BF16", (1000, 64), FileRange(path, start)),
        OutputTensor("head.weight", "F16", (1000, 64), lambda: (rows.half() for rows in blocks)),
    ))
    write_output("out", Output((shard,), beside={"config.json": b"{}"}))
"""

from __future__ import annotations

from shardload.writing.layout import Layout, read_raw_header
from shardload.writing.output import (
    FileRange,
    Output,
    OutputShard,
    OutputTensor,
    SameFile,
    index_document,
    split_into_shards,
)
from shardload.writing.output_writer import DiskRoom, Written, disk_room, write_output

__all__ = [
    "DiskRoom",
    "FileRange",
    "Layout",
    "Output",
    "OutputShard",
    "OutputTensor",
    "SameFile",
    "Written",
    "disk_room",
    "index_document",
    "read_raw_header",
    "split_into_shards",
    "write_output",
]
