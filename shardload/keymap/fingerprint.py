"""Fingerprints: they tell whether a set of keys is the one that a map was written for."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardload.errors import UsageError
from shardload.keymap.rule import whole_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.keymap.derived import Derived

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Fingerprint:
    """How many keys there are, and the SHA-256 of their names and shapes, in the order of the names.

    Dtypes and shards do not count: one map serves a checkpoint in every precision and however it is sharded.
    """

    keys: int
    sha256: str

    def __post_init__(self) -> None:
        whole_number("keys of a fingerprint", self.keys)
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise UsageError("a fingerprint has 64 hexadecimal digits", where=repr(self.sha256)[:200])

    @classmethod
    def of(cls, tensors: Mapping[str, Derived]) -> Fingerprint:
        """Return the fingerprint of a table of tensors."""
        digest = hashlib.sha256()
        for name in sorted(tensors):
            digest.update(json.dumps([name, *tensors[name].shape]).encode() + b"\n")
        return cls(len(tensors), digest.hexdigest())
