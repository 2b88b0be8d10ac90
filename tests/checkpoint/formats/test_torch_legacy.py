"""Files of torch before 1.6, made byte by byte: forms that torch.save no longer writes, and false ones."""

from __future__ import annotations

import struct

import pytest
import torch

from shardload.checkpoint.formats.torch_legacy import TorchLegacyFormat
from shardload.errors import CorruptError, UnsupportedError

from .files import LEGACY_MAGIC, LEGACY_START, load_span, local, read_bytes, same
from .opcodes import EMPTY, REBUILD, text

FACTS = b"\x80\x02}X\r\x00\x00\x00little_endian\x88s."


def storage(key="0", numel=6, view=None):
    extra = (
        b"N"
        if view is None
        else b"(" + text(view[0]) + b"K" + bytes([view[1]]) + b"K" + bytes([view[2]]) + b"t"
    )
    return (
        b"("
        + text("storage")
        + b"ctorch\nFloatStorage\n"
        + text(key)
        + text("cpu")
        + b"K"
        + bytes([numel])
        + extra
        + b"tQ"
    )


def tensor(stored, length, offset=0):
    return (
        REBUILD
        + b"("
        + stored
        + b"K"
        + bytes([offset])
        + b"K"
        + bytes([length])
        + b"\x85K\x01\x85\x89"
        + EMPTY
        + b"tR"
    )


def legacy(items, keys=("0",), blocks=None):
    state = b"\x80\x02}(" + b"".join(text(name) + value for name, value in items.items()) + b"u."
    order = b"\x80\x02](" + b"".join(map(text, keys)) + b"e."
    blocks = {"0": struct.pack("<6f", *range(6))} if blocks is None else blocks
    data = b"".join(struct.pack("<q", len(blocks[key]) // 4) + blocks[key] for key in keys)
    return LEGACY_START + state + order + data


def test_views_of_old_persistent_ids(tmp_path):
    items = {"whole": tensor(storage(), 6), "view": tensor(storage(view=("9", 2, 3)), 2, offset=1)}
    data = legacy(items)
    header = read_bytes(tmp_path, data)
    path = tmp_path / "model.bin"
    oracle = torch.load(path, weights_only=True)
    assert torch.equal(oracle["view"], torch.tensor([3.0, 4.0]))
    for ref in header.tensors:
        assert same(load_span(path, ref), oracle[ref.name])


def test_what_python_2_wrote(tmp_path):
    """Python 2 wrote texts as SHORT_BINSTRING, and a memo that begins at 1."""
    items = {"w": tensor(storage().replace(text("storage"), b"U\x07storageq\x01"), 6)}
    assert read_bytes(tmp_path, legacy(items)).tensors[0].shape == (6,)
    assert torch.load(tmp_path / "model.bin", weights_only=True)["w"].shape == (6,)


GOOD = {"w": tensor(storage(), 6)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LEGACY_MAGIC + b"\x80\x02M\xea\x03." + FACTS, "version of the legacy format"),
        (LEGACY_MAGIC + b"\x80\x02M\xe9\x03." + b"\x80\x02].", "no dict"),
        (legacy(GOOD) + b"x", "1 bytes lie beyond the last storage"),
        (legacy(GOOD)[:-1], "1 bytes are missing"),
        (legacy(GOOD)[:-24], "24 bytes are missing"),
        (legacy(GOOD, keys=()), "list of storages is not that"),
        (
            legacy(GOOD, keys=("0", "1"), blocks={"0": bytes(24), "1": bytes(4)}),
            "list of storages is not that",
        ),
        (legacy(GOOD, keys=("0", "0")), "list of storages is not that"),
        (
            legacy(GOOD).replace(struct.pack("<q", 6), struct.pack("<q", 5)),
            "has 5 elements, the pickle gives it 6",
        ),
        (legacy({"w": tensor(storage(view=("9", 4, 3)), 3)}), "a view of 3 elements at 4 in a storage of 6"),
        (legacy({"w": tensor(storage(view=("9", 2, 3)), 4)}), "does not lie inside its storage"),
        (legacy({"w": tensor(storage(view=("0", 2, 3)), 3)}), "a view is called like a storage"),
        (
            legacy({"w": tensor(storage(view=("9", 2, 3)), 3), "v": tensor(storage(view=("9", 1, 3)), 3)}),
            "two different views",
        ),
        (legacy({"w": tensor(storage(), 7)}), "does not lie inside its storage"),
    ],
)
def test_lies(tmp_path, data, message):
    with pytest.raises(CorruptError, match=message) as caught:
        read_bytes(tmp_path, data)
    assert "model.bin" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LEGACY_MAGIC + b"\x80\x02M\xe9\x03." + FACTS.replace(b"\x88", b"\x89"), "big-endian"),
        (LEGACY_START + b"\x80\x02(" + text("module") + b"NNNtQ." + b"\x80\x02].", "a whole pickled model"),
    ],
)
def test_known_and_not_read(tmp_path, data, message):
    with pytest.raises(UnsupportedError, match=message):
        read_bytes(tmp_path, data)


def test_a_file_is_told_by_its_first_bytes(tmp_path):
    legacy_format = TorchLegacyFormat()
    torch.save({"w": torch.ones(2)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    torch.save({"w": torch.ones(2)}, tmp_path / "new.bin")
    assert legacy_format.matches((tmp_path / "old.bin").read_bytes()[:64])
    assert not legacy_format.matches((tmp_path / "new.bin").read_bytes()[:64])
    (ref,) = legacy_format.read_header(local(tmp_path / "old.bin")).tensors
    assert (ref.name, ref.shape) == ("w", (2,))
