"""Mutations of bytes: cut, doubled, replaced, a bit flipped, a number changed so that the text stays well-formed."""

from __future__ import annotations

import random
import re

PIECES = [
    b"0", b"-1", b"-0", b"1e0", b"2.0", b"9223372036854775808", b"18446744073709551616", b"null", b"true", b"[]",
    b"{}", b",", b":", b'"', b"\\", b"\\u0061", b"\\ud800", b"\xff", b"\xc3", b"\0", b" ", b"NaN", b"F16", b"4",
    b'"a.weight":', b"PK\1\2", b"PK\5\6", b"\x80\x02", b"R", b"Q", b"(", b"t", b"\x85", b"K\x01", b"J\xff\xff\xff\xff",
]  # fmt: skip


class MemoryFile:
    is_remote = False

    def __init__(self, data: bytes) -> None:
        self.name, self.data, self.size = "mutant.bin", data, len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def mutate(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        to = min(to, at + rng.choice((1, 2, 8, 40)))
        data = rng.choice((
            lambda at=at, to=to, data=data: data[:at] + data[to:],
            lambda at=at, to=to, data=data: data[:to] + data[at:to] + data[to:],
            lambda at=at, data=data: data[:at] + rng.choice(PIECES) + data[at:],
            lambda at=at, to=to, data=data: data[:at] + rng.choice(PIECES) + data[to:],
            lambda at=at, data=data: data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
            lambda at=at, data=data: data[:at] + bytes([data[at % len(data)] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
            lambda at=at, data=data: replace_number(rng, data, at),
        ))() or b"{"  # fmt: skip
    return data


def replace_number(rng: random.Random, data: bytes, at: int) -> bytes:
    """Change a decimal number of the text, so that many mutants stay well-formed."""
    found = re.compile(rb"\d+").search(data, at)
    if not found:
        return data
    number = str(max(0, int(found[0]) + rng.choice((-8, -1, 1, 8, 24)))).encode()
    return data[: found.start()] + number + data[found.end() :]
