"""`transformers.generation.streamers`: names only, until `generate` arrives."""

from __future__ import annotations

from typing import Any

from shardload.remote_code.shim._missing import later_class


class BaseStreamer:
    """Receives tokens as they are generated; subclasses define `put` and `end`."""

    def put(self, value: Any) -> None:
        """Take new tokens."""
        raise NotImplementedError

    def end(self) -> None:
        """Take note that the generation ended."""
        raise NotImplementedError


TextStreamer = later_class("TextStreamer", __name__)
TextIteratorStreamer = later_class("TextIteratorStreamer", __name__)
