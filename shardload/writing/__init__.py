"""Writes safetensors checkpoints as a stream: the layout is planned first, then the bytes follow block by block.

An `Output` describes the files: tensors as ranges of other files or as functions that yield row blocks, whole files
that stay as they are, and the files beside the weights. `write_output` writes each file into a staging folder inside
the target, flushes it and notes it in a journal; at the end it moves all files in, an index last. After a kill nothing
takes the folder for a checkpoint, and the next call continues.

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
