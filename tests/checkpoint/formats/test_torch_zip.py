"""The archive that torch.save writes: what lies around its pickle, and how few reads a remote one takes."""

from __future__ import annotations

import zipfile

import pytest
import torch

from shardload.checkpoint.checkpoint import format_of
from shardload.checkpoint.formats.torch_zip import TorchZipFormat
from shardload.errors import CorruptError, UnsupportedError

from .files import DistantFile, read, read_bytes, torch_zip
from .opcodes import pickled


@pytest.mark.parametrize(
    ("pickle", "blocks", "message"),
    [
        (pickled(numel=7), {"0": bytes(24)}, "should have 7 elements of F32"),
        (pickled(numel=5), {"0": bytes(24)}, "should have 5 elements"),
        (pickled(numel=2**60), {"0": bytes(24)}, "should have"),
        (pickled(kind="Double"), {"0": bytes(24)}, "should have 6 elements of F64"),
        (pickled(), {"1": bytes(24)}, "the storage '0' is not in the archive"),
        (pickled(key="../0"), {"0": bytes(24)}, "is not in the archive"),
        (pickled() + b"more", {"0": bytes(24)}, "bytes follow the checkpoint's pickle"),
        (pickled()[:-1], {"0": bytes(24)}, "ends in the middle"),
    ],
)
def test_pickle_and_archive_disagree(tmp_path, pickle, blocks, message):
    with pytest.raises(CorruptError, match=message):
        read_bytes(tmp_path, torch_zip(pickle, blocks))


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"byteorder": b"big"}, UnsupportedError, "big-endian"),
        ({"byteorder": b"middle"}, CorruptError, "byte order b'middle' is unknown"),
        ({"version": b"11\n"}, CorruptError, "format version"),
        ({"version": b"three"}, CorruptError, "format version"),
        ({"version": b"9" * 5000}, CorruptError, "of 5,000 bytes"),
        ({"constants.pkl": b"\x80\x02)."}, UnsupportedError, "TorchScript"),
        ({"code/a.py": b""}, UnsupportedError, "TorchScript"),
    ],
)
def test_the_entries_around_the_pickle(tmp_path, more, error, message):
    with pytest.raises(error, match=message):
        read_bytes(tmp_path, torch_zip(pickled(), {"0": bytes(24)}, **more))


def test_no_version_is_corrupt(tmp_path):
    path = tmp_path / "model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}.")
    with pytest.raises(CorruptError, match="format version"):
        read(path)


def test_a_torchscript_archive_is_named(tmp_path):
    path = tmp_path / "script.pt"
    archive = torch._C.PyTorchFileWriter(str(path))
    archive.write_record("data.pkl", b"\x80\x02}.", 4)
    archive.write_record("code/__torch__.py", b"class A: pass", 13)
    archive.write_record("constants.pkl", b"\x80\x02).", 4)
    archive.write_end_of_file()
    with pytest.raises(UnsupportedError, match="TorchScript archive: it holds code"):
        read(path)


@pytest.mark.parametrize("alignment", [64, 4096, 8])
def test_the_place_of_data_in_a_remote_archive(tmp_path, alignment):
    from torch.utils.serialization import config

    path = tmp_path / "model.bin"
    with config.patch("save.storage_alignment", alignment):
        torch.save({f"w{i}": torch.full((i * 37,), float(i)) for i in range(40)}, path)
    distant = DistantFile(path)
    assert format_of(distant).read_header(distant) == read(path)


def test_a_remote_archive_takes_three_reads(tmp_path):
    path = tmp_path / "pytorch_model-00001-of-00007.bin"
    torch.save({f"w{i}": torch.ones(100_000) for i in range(60)}, path)
    distant = DistantFile(path)
    assert len(format_of(distant).read_header(distant).tensors) == 60
    assert len(distant.reads) == 3
    assert sum(length for _, length in distant.reads) < 200_000


def test_an_archive_of_torch_is_told_from_other_zips(tmp_path):
    path = tmp_path / "model.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"")
    zip_format = TorchZipFormat()
    assert zip_format.matches(path.read_bytes()[:64])  # a zip's head says no more
    with pytest.raises(UnsupportedError, match="NumPy .npz archive"):
        zip_format.read_header(DistantFile(path))
    assert not zip_format.matches(b"\x80\x02}.")
