"""Parses sizes as people write them: "5GB", "300 MiB"."""

from __future__ import annotations

import re

from shardload.errors import UsageError

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


def parse_size(size: str | int, argument: str = "max_shard_size") -> int:
    """Return a size in bytes: a number as it is, or a text in powers of ten ("5GB") or two ("5GiB").

    Raises UsageError for any other text, and for a size of 0 or less.
    """
    if isinstance(size, int):
        limit = size
    else:
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?i?B?)\s*", str(size), re.IGNORECASE)
        unit = match[2].upper() if match else None
        if match is None or unit not in _UNITS:
            raise UsageError(f"{argument}={size!r} is not a size", cure='pass bytes, or a text such as "5GB"')
        limit = int(float(match[1]) * _UNITS[unit])
    if limit <= 0:
        raise UsageError(f"{argument}={size!r} is too small to hold a tensor")
    return limit
