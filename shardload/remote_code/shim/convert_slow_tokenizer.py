"""`transformers.convert_slow_tokenizer`, in part: what reads a SentencePiece model as a message."""

from __future__ import annotations

import importlib
from typing import Any


def import_protobuf(_error_message: str = "") -> Any:
    """Return sentencepiece's module of protobuf messages; ImportError where sentencepiece or protobuf lacks."""
    return importlib.import_module("sentencepiece.sentencepiece_model_pb2")
