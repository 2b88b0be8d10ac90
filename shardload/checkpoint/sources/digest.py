"""What a source knows about the content of a file without reading it."""

from __future__ import annotations

import hashlib
import re
from typing import Literal, NamedTuple

_HEX = re.compile(r"[0-9a-f]+")


class Digest(NamedTuple):
    r"""The hash that a file's bytes must have, and who says so.

    "sha256" is that of the bytes, "git" the id of a git blob: SHA-1 of `blob <size>\0` and the bytes.
    """

    kind: Literal["sha256", "git"]
    hex: str
    by: str

    def of(self, content: bytes) -> str:
        """Return the hash of this kind that some bytes have."""
        if self.kind == "sha256":
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()

    @classmethod
    def of_blob_name(cls, name: str, by: str) -> Digest | None:
        """Return the digest that a blob's name in the Hub's cache states: its ETag, a SHA-256 or a git id.

        None for any other name.
        """
        if not _HEX.fullmatch(name) or len(name) not in {40, 64}:
            return None
        return cls("sha256" if len(name) == 64 else "git", name, by)
