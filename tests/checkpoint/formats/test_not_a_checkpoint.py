"""The error for a file that is not a checkpoint names its real kind and a cure."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile

import pytest

from shardload.checkpoint.checkpoint import format_of
from shardload.checkpoint.formats import FORMATS
from shardload.errors import CorruptError, UnsupportedError

from .files import local, read

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a2146" * 8 + b"\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Log in</title></head>"


def tar(names):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    return out.getvalue()


def zipped(*names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, b"content " * 10)
    return out.getvalue()


BROKEN = {
    "empty": ("model.safetensors", b"", "is empty"),
    "pointer": ("model.safetensors", POINTER, "Git-LFS pointer"),
    "pointer with CRLF": ("model.bin", POINTER.replace(b"\n", b"\r\n"), "Git-LFS pointer"),
    "page": ("model.bin", PAGE, "an HTML page"),
    "xml error": ("model.bin", b"<?xml version='1.0'?><Error>AccessDenied</Error>", "an XML error message"),
    "xml": ("openvino.bin", b"<?xml version='1.0'?><net name='a'/>", "is XML text"),
    "UTF-16": ("model.bin", "name,value".encode("utf-16"), "is UTF-16 text"),
    "json": ("model.safetensors.index.json", b'{"metadata": {}, "weight_map": {}}', "JSON text"),
    "json with a brace at 8": ("config.json", b'{"aaaa":{"b": 1}}', "JSON text"),
    "plain words": ("model.bin", b"Entry not found", "is text, not weights"),
    "umlauts cut in the middle": ("a.bin", b"x" + "ü".encode() * 300, "is text"),
    "zeros": ("model.bin", bytes(4096), "512 zero bytes"),
    "not by its name": (
        "model.safetensors",
        bytes(range(1, 200)),
        "has no safetensors header",
    ),
}

KNOWN = {
    "gguf": ("model.gguf", b"GGUF\1\0\0\0", "a GGUF file of version 1"),
    "gguf in disguise": ("model.bin", b"GGUF\0\0\0\3", "a GGUF file for big-endian"),
    "ggml": ("ggml.bin", b"tjgg\1\0\0\0", "a GGML file"),
    "hdf5": ("tf_model.h5", b"\x89HDF\r\n\x1a\n\0", "an HDF5 file"),
    "npy": ("a.npy", b"\x93NUMPY\1\0", r"a NumPy \.npy array"),
    "npz": ("a.npz", zipped("a.npy", "b.npy"), r"a NumPy \.npz archive"),
    "keras": ("m.keras", zipped("metadata.json", "model.weights.h5"), "a Keras"),
    "zip": ("models.zip", zipped("readme.txt"), "a zip archive that torch.save did not write"),
    "zip of checkpoints": ("models.zip", zipped("a/model.safetensors"), "a zip of checkpoint files"),
    "empty zip": ("a.bin", zipped(), "an empty zip"),
    "tflite": ("model.tflite", b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
    "gzip": ("model.bin.gz", gzip.compress(b"x"), "a gzip archive"),
    "tar": ("models.tar", tar(["a.bin"]), "a tar archive"),
    "old torch": (
        "model.pth",
        tar(["sys_info", "pickle", "storages", "tensors"]),
        r"torch's tar format \(before torch",
    ),
    "pickle": ("model.pkl", pickle.dumps({"a": 1}), "a Python pickle that torch.save did not write"),
    "old pickle": ("model.bin", pickle.dumps({"a": 1}, 2), "a Python pickle"),
    "tensorflow": ("model.ckpt.data-00000-of-00001", b"\x01\x80\x81", "TensorFlow checkpoint"),
    "onnx": ("model.onnx", b"\x08\x07\x12\x07pytorch\x80", "an ONNX model"),
    "flax": ("flax_model.msgpack", b"\x85\xa5model\x80", "a Flax"),
    "unknown": ("weights", b"\x01\x02\x03\x80", "of no format that shardload knows"),
    "one byte": ("weights.bin", b"\x01", "of no format"),
}


@pytest.mark.parametrize(
    ("name", "data", "message", "error"),
    [(*row, CorruptError) for row in BROKEN.values()] + [(*row, UnsupportedError) for row in KNOWN.values()],
    ids=[*BROKEN, *KNOWN],
)
def test_named_with_a_cure(tmp_path, name, data, message, error):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(error, match=message) as caught:
        read(path)
    assert name in caught.value.what
    assert caught.value.cure


def test_a_pointer_tells_its_size_and_cure(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(POINTER)
    with pytest.raises(CorruptError) as caught:
        format_of(local(path))
    assert "12,345 bytes" in str(caught.value)
    assert "git lfs pull" in str(caught.value)


def test_a_text_that_attacks_the_terminal_is_escaped(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes("\u202etxt \n".encode() * 3)
    with pytest.raises(CorruptError) as caught:
        read(path)
    assert "\u202e" not in str(caught.value)


def test_the_order_of_formats():
    assert [fmt.name for fmt in FORMATS] == ["safetensors", "torch zip", "torch legacy", "gguf"]
