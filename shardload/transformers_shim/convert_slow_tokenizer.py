"""`transformers.convert_slow_tokenizer`, in part: letters for bytes, and SentencePiece models as protobuf messages."""

from __future__ import annotations

import functools
import importlib
from typing import Any


@functools.cache
def bytes_to_unicode() -> dict[int, str]:
    """Return the letter that each byte is written as in byte-level vocabularies: itself, or one from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def import_protobuf(_error_message: str = "") -> Any:
    """Return sentencepiece's module of protobuf messages; ImportError where sentencepiece or protobuf is missing."""
    return importlib.import_module("sentencepiece.sentencepiece_model_pb2")
