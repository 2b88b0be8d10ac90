"""Makes pickles of torch opcode by opcode: those that a writer would refuse to write."""

from __future__ import annotations

import struct


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def call(name: str, *args: bytes) -> bytes:
    module, _, attribute = name.rpartition(".")
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n(" + b"".join(args) + b"tR"


ORDERED = b"ccollections\nOrderedDict\n"
FLOAT = b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
EMPTY = ORDERED + b")R"


def int8(value):
    return (
        b"\x8a\x08" + struct.pack("<q", value)
        if -(2**63) <= value < 2**63
        else b"\x8a\x0c" + value.to_bytes(12, "little")
    )


def pickled(shape=(2, 3), strides=(3, 1), offset=0, numel=6, kind="Float", key="0"):
    """Return a state dict of one tensor, "w"; its numbers may contradict each other."""
    storage = (
        b"("
        + text("storage")
        + f"ctorch\n{kind}Storage\n".encode()
        + text(key)
        + text("cpu")
        + int8(numel)
        + b"tQ"
    )
    dims = [b"(" + b"".join(int8(value) for value in values) + b"t" for values in (shape, strides)]
    return (
        b"\x80\x02}"
        + text("w")
        + REBUILD
        + b"("
        + storage
        + int8(offset)
        + dims[0]
        + dims[1]
        + b"\x89"
        + EMPTY
        + b"tRs."
    )
