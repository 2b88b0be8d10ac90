"""Refuses archives that contradict themselves, and tensors that reach beyond their storage."""

from __future__ import annotations

import struct
import zipfile

import pytest
import torch

from shardload.checkpoint.formats.zip_directory import ZipDirectory
from shardload.errors import CorruptError, UnsupportedError

from .files import load_span, local, read, read_bytes, torch_zip
from .opcodes import pickled


def test_the_plain_case(tmp_path):
    block = struct.pack("<6f", *range(6))
    header = read_bytes(tmp_path, torch_zip(pickled(), {"0": block}))
    assert torch.equal(load_span(tmp_path / "model.bin", header.tensors[0]), torch.arange(6.0).view(2, 3))


OUTSIDE = {
    "too many rows": {"shape": (3, 3)},
    "wide stride": {"strides": (4, 1)},
    "offset": {"offset": 1},
    "offset far away": {"offset": 2**62},
    "offset -1": {"offset": -1},
    "dimension -1": {"shape": (-1, 3)},
    "stride -1": {"strides": (3, -1), "offset": 2},
    "product overflows": {"shape": (2**40, 2**40), "strides": (0, 0)},
    "dimension beyond 2^63": {"shape": (2**64, 1), "strides": (0, 0)},
    "stride beyond 2^63": {"shape": (1, 1), "strides": (2**64, 1)},
    "a hundred dimensions": {"shape": (1,) * 100, "strides": (1,) * 100},
    "wraps around": {"shape": (2, 3), "strides": (2**62, 2**62)},
    "empty at a negative offset": {"shape": (0,), "strides": (1,), "offset": -3},
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_tensors_outside_their_storage(tmp_path, name):
    with pytest.raises(CorruptError, match="does not lie inside its storage") as caught:
        read_bytes(tmp_path, torch_zip(pickled(**OUTSIDE[name]), {"0": bytes(24)}))
    assert "'w'" in str(caught.value)
    assert "24 bytes" in str(caught.value)


def test_compressed_entries_are_refused(tmp_path):
    path = tmp_path / "model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", pickled())
        archive.writestr("model/data/0", bytes(1_000_000))
        archive.writestr("model/version", b"3")
    with pytest.raises(UnsupportedError, match="compressed, encrypted or a folder"):
        read(path)


def test_zip64_sizes(tmp_path):
    path = tmp_path / "model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", pickled()), ("data/0", bytes(24)), ("version", b"3")):
            with archive.open(f"model/{name}", "w", force_zip64=True) as entry:
                entry.write(content)
    assert read(path).tensors[0].span.nbytes == 24


def patched(tmp_path, pattern, replacement, occurrence=0):
    data = torch_zip(pickled(), {"0": bytes(24)})
    at = -1
    for _ in range(occurrence + 1):
        at = data.index(pattern, at + 1)
    return read_bytes(tmp_path, data[:at] + replacement + data[at + len(pattern) :])


@pytest.mark.parametrize(
    ("pattern", "replacement", "occurrence", "message"),
    [
        (b"PK\3\4", b"PK\3\5", 2, "the local header of 'model/data/0' contradicts"),
        (b"PK\1\2", b"PK\1\3", 0, "an entry of its directory is malformed"),
        (b"PK\5\6", b"PK\5\5", 0, "truncated: its directory"),
        (b"model/data/0", b"model/data.p", 1, "is not in the archive"),
        (b"model/data/0", b"model/DATA.P", 1, "is not in the archive"),
        (b"model/data/0", b"\xff\xfe\xfd\xfcl/data/0", 1, "not UTF-8"),
        (b"model/version", b"MODEL/DATA.PK", 1, "lies beside"),
    ],
)
def test_damaged_archives(tmp_path, pattern, replacement, occurrence, message):
    with pytest.raises(CorruptError, match=message):
        patched(tmp_path, pattern, replacement, occurrence)


def directory_of(data):
    """Return the offset of the central directory, and the offsets of its entries."""
    end = data.rindex(b"PK\5\6")
    start = struct.unpack_from("<L", data, end + 16)[0]
    entries, at = [], start
    while data[at : at + 4] == b"PK\1\2":
        entries.append(at)
        name, extra, comment = struct.unpack_from("<3H", data, at + 28)
        at += 46 + name + extra + comment
    return end, start, entries


@pytest.mark.parametrize(
    ("field", "form", "value", "message"),
    [
        (42, "<L", 0, "same byte"),
        (42, "<L", 0xFFFFFFF0, "overlaps"),
        (42, "<L", 0xFFFFFFFF, "zip64 sizes"),
        (20, "<2L", (2000, 2000), "overlaps"),
        (20, "<2L", (23, 23), "should have 6 elements"),
        (20, "<2L", (24, 25), "compressed, encrypted or a folder"),
        (8, "<H", 1, "compressed, encrypted or a folder"),
        (10, "<H", 8, "compressed, encrypted or a folder"),
        (38, "<L", 0x10, "compressed, encrypted or a folder"),
        (28, "<H", 60000, "is malformed"),
        (30, "<H", 60000, "is malformed"),
        (34, "<H", 1, "is malformed"),
    ],
)
def test_a_lying_directory_entry(tmp_path, field, form, value, message):
    data = bytearray(torch_zip(pickled(), {"0": bytes(24)}))
    _, _, entries = directory_of(data)
    struct.pack_into(form, data, entries[2] + field, *(value if isinstance(value, tuple) else (value,)))
    with pytest.raises((CorruptError, UnsupportedError), match=message):
        read_bytes(tmp_path, bytes(data))


@pytest.mark.parametrize(
    ("field", "form", "value"),
    [(4, "<H", 1), (10, "<H", 3), (10, "<H", 60000), (12, "<L", 5), (16, "<L", 5), (20, "<H", 9)],
)
def test_a_lying_end(tmp_path, field, form, value):
    data = bytearray(torch_zip(pickled(), {"0": bytes(24)}))
    end, _, _ = directory_of(data)
    struct.pack_into(form, data, end + field, value)
    with pytest.raises(CorruptError):
        read_bytes(tmp_path, bytes(data))


def test_the_same_entry_twice(tmp_path):
    path = tmp_path / "model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("model/data.pkl", "model/version", "MODEL/DATA.PKL"):
            archive.writestr(name, b"3")
    with pytest.raises(CorruptError, match="'MODEL/DATA.PKL' twice"):
        read(path)


def test_two_entries_at_one_place(tmp_path):
    data = bytearray(torch_zip(pickled(), {"0": bytes(24), "1": bytes(24)}))
    _, _, entries = directory_of(data)
    first = struct.unpack_from("<L", data, entries[2] + 42)[0]
    struct.pack_into("<L", data, entries[3] + 42, first)
    with pytest.raises(CorruptError, match="same byte"):
        read_bytes(tmp_path, bytes(data))


def test_entries_with_their_places_exchanged(tmp_path):
    data = bytearray(torch_zip(pickled(), {"0": bytes(24), "1": bytes(24)}))
    _, _, entries = directory_of(data)
    places = [struct.unpack_from("<L", data, entries[i] + 42)[0] for i in (2, 3)]
    for i, place in ((2, places[1]), (3, places[0])):
        struct.pack_into("<L", data, entries[i] + 42, place)
    with pytest.raises(CorruptError, match="has another name"):
        read_bytes(tmp_path, bytes(data))


def test_a_directory_of_too_many_entries(tmp_path):
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 10**6, 10**6, 46 * 10**6, 30)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 30 + 46 * 10**6, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path = tmp_path / "model.bin"
    path.write_bytes(b"PK\3\4" + bytes(26 + 46 * 10**6) + end64 + locator + end)
    with pytest.raises(UnsupportedError, match="1,000,000 entries"):
        read(path)


@pytest.mark.parametrize(
    ("record", "field"),
    [(b"PK\5\6", 4), (b"PK\5\6", 6), (b"PK\6\7", 16), (b"PK\6\6", 16), (b"PK\6\6", 20)],
    ids=str,
)
def test_an_archive_of_several_volumes(tmp_path, record, field):
    """Found by mutation; torch's reader refuses such an archive too."""
    path = tmp_path / "model.bin"
    torch.save({"w": torch.ones(3)}, path)
    data = bytearray(path.read_bytes())
    at = data.rfind(record)
    assert at > 0
    data[at + field] = 2
    with pytest.raises(CorruptError, match="several volumes|zip64 end"):
        read_bytes(tmp_path, bytes(data))
    if record != b"PK\5\6":  # torch's reader believes the zip64 end if there is one
        path.write_bytes(data)
        with pytest.raises(RuntimeError, match="multidisk"):
            torch.load(path, weights_only=True)


def test_the_directory_is_that_which_zipfile_reads(tmp_path):
    path = tmp_path / "model.bin"
    torch.save({f"w{i}": torch.full((i,), float(i)) for i in range(9)}, path)
    ours = ZipDirectory(local(path))
    with zipfile.ZipFile(path) as archive:
        theirs = {info.filename: info for info in archive.infolist()}
        assert {name: (e.size, e.header) for name, e in ours.entries.items()} == {
            name: (info.file_size, info.header_offset) for name, info in theirs.items()
        }
        assert all(ours.read(entry) == archive.read(name) for name, entry in ours.entries.items())
