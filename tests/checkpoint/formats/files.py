"""Makes the files that the tests of this folder read, with torch or byte by byte."""

from __future__ import annotations

import json
import struct
import zipfile
from typing import TYPE_CHECKING

import torch

from shardload.checkpoint.checkpoint import format_of
from shardload.checkpoint.sources.folder import LocalFile
from shardload.tensor_ref import TORCH_NAMES, torch_shape

if TYPE_CHECKING:
    from pathlib import Path

    from shardload.checkpoint.formats.format import Header
    from shardload.tensor_ref import TensorRef

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
LEGACY_START = LEGACY_MAGIC + b"\x80\x02M\xe9\x03." + b"\x80\x02}X\r\x00\x00\x00little_endian\x88s."


class DistantFile(LocalFile):
    """A local file that claims to be remote, and records its reads."""

    is_remote = True

    def __init__(self, path: Path) -> None:
        super().__init__(path.name, path)
        self.reads: list[tuple[int, int]] = []

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return super().read_at(offset, length)


def local(path: Path) -> LocalFile:
    return LocalFile(path.name, path)


def read(path: Path) -> Header:
    file = local(path)
    return format_of(file).read_header(file)


def read_bytes(tmp_path: Path, data: bytes, name: str = "model.bin") -> Header:
    path = tmp_path / name
    path.write_bytes(data)
    return read(path)


def load_span(path: Path, ref: TensorRef) -> torch.Tensor:
    """Return the tensor that the bytes of its span hold, as the loader makes it."""
    dtype = getattr(torch, TORCH_NAMES[ref.dtype])
    raw = bytearray(path.read_bytes()[ref.span.start : ref.span.stop])
    if not raw:
        return torch.empty(torch_shape(ref.dtype, ref.shape), dtype=dtype)
    flat = torch.frombuffer(raw, dtype=dtype)
    return (
        flat.view(torch_shape(ref.dtype, ref.shape))
        if ref.strides is None
        else flat.as_strided(ref.shape, ref.strides)
    )


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether two tensors are equal bit for bit, strides included."""
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return False
    if not theirs.is_contiguous() and ours.stride() != theirs.stride():
        return False
    return as_bytes(ours) == as_bytes(theirs)


def as_bytes(tensor: torch.Tensor) -> bytes:
    if tensor.is_contiguous() and tensor.numel() > 1:
        flat = tensor.detach().flatten()
    else:
        flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
        flat.view(tensor.shape).copy_(tensor.detach())
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""


def torch_zip(
    pickle: bytes, blocks: dict[str, bytes] | None = None, root: str = "model", **more: bytes
) -> bytes:
    """Return a zip archive as torch.save writes it, with any pickle in it."""
    import io

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", pickle)
        archive.writestr(f"{root}/byteorder", more.pop("byteorder", b"little"))
        for key, block in (blocks or {}).items():
            archive.writestr(f"{root}/data/{key}", block)
        archive.writestr(f"{root}/version", more.pop("version", b"3\n"))
        for name, content in more.items():
            archive.writestr(f"{root}/{name}", content)
    return out.getvalue()


def safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """Return a safetensors file; `header` is JSON data, or the header's own text or bytes."""
    raw = (
        header
        if isinstance(header, bytes)
        else (header if isinstance(header, str) else json.dumps(header)).encode()
    )
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data
