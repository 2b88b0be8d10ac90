"""The parts of a GGUF file that llama.cpp split: `model-00001-of-00003.gguf` and the others are one checkpoint."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shardload.errors import CorruptError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.checkpoint.formats.format import Header
    from shardload.checkpoint.sources.source import SourceFile

_PART = re.compile(r"(?P<stem>.*-)\d{5}-of-(?P<total>\d{5})\.gguf")
_MOST = 10_000  # files of a set


def parts_of(name: str) -> tuple[str, ...]:
    """Return the names of all parts of the set that a file belongs to by its name; most files are their one part."""
    found = _PART.fullmatch(name)
    total = int(found["total"]) if found else 0
    if not found or not 0 < total <= _MOST:
        return (name,)
    return tuple(f"{found['stem']}{number:05}-of-{found['total']}.gguf" for number in range(1, total + 1))


def joined_parts(headers: Sequence[Header], files: Sequence[SourceFile]) -> list[Header]:
    """Return the headers of a set of parts with what they say together in the first; others as they are.

    Raises UsageError for one part alone under another name, CorruptError for parts of other sets.
    """
    told = [json.loads(header.metadata["gguf"]) for header in headers if "gguf" in header.metadata]
    if not told or len(told) < len(headers):
        return list(headers)
    faults = []
    for place, (content, file) in enumerate(zip(told, files, strict=True)):
        count, number = (
            content["values"].get(f"split.{name}", given) for name, given in (("count", 1), ("no", 0))
        )
        if len(files) == 1 and type(count) is int and count > 1:
            raise _alone(file.name, number, count)
        if (count or 1, number) != (len(files), place):
            faults.append(f"{file.name} says that it is part {number!r} of {count!r}, counted from 0")
    counted = told[0]["values"].get("split.tensors.count")
    stored = sum(len(header.tensors) for header in headers)
    if len(files) > 1 and counted not in (None, stored):
        faults.append(f"{files[0].name} counts {counted!r} tensors, the parts hold {stored:,}")
    if faults:
        raise CorruptError(
            "the files are not the parts of one GGUF file",
            where="; ".join(faults[:8]),
            cure="fetch all parts of one revision again",
        )
    types = {name: kind for content in told for name, kind in content["types"].items()}
    whole = json.dumps({"types": types, "values": _without_split(told[0]["values"])})
    first = replace(headers[0], metadata={**headers[0].metadata, "gguf": whole})
    return [first, *(replace(header, metadata={}) for header in headers[1:])]


def _without_split(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not name.startswith("split.")}


def _alone(name: str, number: Any, count: int) -> UsageError:
    begin = name.removesuffix(".gguf")
    number = number + 1 if type(number) is int else 1
    return UsageError(
        f"{name} is one of the {count} files that a GGUF file was split into",
        where=name,
        cure="in one folder, give all of them the names that llama.cpp gave them: this one was "
        f"{begin}-{number:05}-of-{count:05}.gguf",
    )
