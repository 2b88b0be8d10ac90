"""What a file is, told by its first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile

import pytest

from shardload._system.file_kind import HEAD_BYTES, kind_of, looks_like_text, size_of_pointer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"
S3 = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied</Message>'
    b"<RequestId>X</RequestId></Error>"
)
JSON = json.dumps({"weight_map": {"a": "b"}}).encode()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("config.json", JSON)
    return out.getvalue()


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("config.json"), io.BytesIO(b""))
    return out.getvalue()


KINDS = {
    "nothing": (b"", "empty", "E-CORRUPT"),
    "zeros": (bytes(4096), "an unfinished download: it begins with 512 zero bytes", "E-CORRUPT"),
    "pointer": (POINTER, "a Git-LFS pointer", "E-LFS"),
    "page": (b"<!DOCTYPE html>\n<html>log in</html>", "an HTML page", "E-HTML"),
    "page without doctype": (b"\r\n <HTML lang=en>", "an HTML page", "E-HTML"),
    "page after a comment": (b"<!-- proxy --><html>", "an HTML page", "E-HTML"),
    "XHTML": (b'<?xml version="1.0"?><!DOCTYPE html PUBLIC "x">', "an HTML page", "E-HTML"),
    "S3": (S3, "an XML error message", "E-HTML"),
    "Azure": (b"\xef\xbb\xbf" + S3, "an XML error message", "E-HTML"),
    "GCS": (b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>NoSuchKey</Code></Error>", "an XML error", "E-HTML"),
    "XML": (b'<?xml version="1.0"?><net name="a"><errors/></net>', "XML text", "E-CORRUPT"),
    "gguf": (b"GGUF\3\0\0\0", "a GGUF file", "E-FORMAT"),
    "gzip": (gzip.compress(JSON), "a gzip archive", "E-FORMAT"),
    "bzip2": (bz2.compress(JSON), "a bzip2 archive", "E-FORMAT"),
    "xz": (lzma.compress(JSON), "an xz archive", "E-FORMAT"),
    "zip": (zipped(), "a zip archive", "E-FORMAT"),
    "tar": (tar(), "a tar archive", "E-FORMAT"),
    "pickle": (pickle.dumps({"a": 1}, 4), "a Python pickle", "E-FORMAT"),
    "safetensors": ((60).to_bytes(8, "little") + b'{"a":{}}', "a safetensors file", "E-FORMAT"),
    "UTF-16": (JSON.decode().encode("utf-16"), "UTF-16 text", "E-CORRUPT"),
    "UTF-16, big": (b"\xfe\xff" + JSON.decode().encode("utf-16-be"), "UTF-16 text", "E-CORRUPT"),
    "UTF-16 without its mark": (JSON.decode().encode("utf-16-le"), "UTF-16 text", "E-CORRUPT"),
    "UTF-16, big, without its mark": (JSON.decode().encode("utf-16-be"), "UTF-16 text", "E-CORRUPT"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "what", "code"), KINDS.values(), ids=KINDS)
def test_a_file_is_named(data, what, code):
    kind = kind_of(data[:HEAD_BYTES], "config.json")
    assert kind is not None
    assert kind.what.startswith(what)
    assert kind.code == code
    assert kind.cure


UNKNOWN = {
    "JSON": JSON,
    "JSON with a mark": b"\xef\xbb\xbf" + JSON,
    "a list": b"[1]",
    "words": b"Entry not found",
    "less than": b"<3 <error>",
    "numbers": bytes(range(1, 200)),
    "a header of 123 bytes without its brace": (123).to_bytes(8, "little") + b"xxxx",
    "one byte": b"\1",
}


@pytest.mark.parametrize("data", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_known_has_no_name(data):
    assert kind_of(data, "config.json") is None


def test_a_name_tells_only_where_the_bytes_do_not():
    assert kind_of(b"\x08\x07\x12\x07pytorch\x80", "model.onnx").what == "an ONNX model"
    assert kind_of(b"<html>", "model.onnx").code == "E-HTML"
    assert kind_of(b"GGUF", "model.onnx").what.startswith("a GGUF file")


def test_a_pointer_says_what_it_stands_for():
    assert size_of_pointer(POINTER) == 123456
    assert size_of_pointer(POINTER.replace(b"size", b"bytes")) is None


def test_text_may_be_cut_inside_a_character():
    text = ("x" + "ü" * 300).encode()
    assert looks_like_text(text[:HEAD_BYTES])
    assert not looks_like_text(text[:HEAD_BYTES] + b"\x80" * 5)
    assert not looks_like_text(b"a\0b")
