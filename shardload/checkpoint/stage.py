"""Stage: the part of a checkpoint that `only=` names, as one stage of a pipeline loads it. Does not import torch."""

from __future__ import annotations

import re
from dataclasses import replace
from fnmatch import translate
from typing import TYPE_CHECKING

from shardload.errors import UsageError, Wording

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shardload.checkpoint.formats.format import Header
    from shardload.checkpoint.index import WeightFiles

_RANGE = re.compile(r"(?<![^.])(\d+)-(\d+)(?![^.])")


class Stage:
    """Names of stored tensors by fnmatch patterns, in which a segment "0-13" stands for the numbers from 0 to 13.

    Shards that hold none of them are not opened.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        if isinstance(patterns, str) or not patterns or not all(isinstance(each, str) for each in patterns):
            raise UsageError(
                Wording("{only} is a list of patterns of tensor names", only=patterns),
                cure=Wording("pass a list: {only}", only=["layers.0-13.*", "embed*"]),
            )
        self.patterns = tuple(patterns)
        self._compiled = [_compiled(pattern) for pattern in patterns]

    def holds(self, name: str) -> bool:
        """Whether a stored tensor of that name belongs to the stage."""
        return any(pattern.match(name) for pattern in self._compiled)

    def files(self, files: WeightFiles) -> WeightFiles:
        """Return the weight files that hold tensors of the stage; all, where no index says which."""
        if not files.weight_map:
            return files
        kept = {name: shard for name, shard in files.weight_map.items() if self.holds(name)}
        self.require_some(kept, files.weight_map, files.index or "")
        shards = tuple(shard for shard in files.shards if shard in set(kept.values()))
        return replace(files, shards=shards, weight_map=kept, total_size=None)

    def headers(self, headers: Sequence[Header], where: str) -> list[Header]:
        """Return the headers of shards without what belongs to other stages. Raises what `require_some` raises."""
        names = [ref.name for header in headers for ref in header.tensors]
        self.require_some(filter(self.holds, names), names, where)
        return [
            replace(
                header,
                tensors=tuple(ref for ref in header.tensors if self.holds(ref.name)),
                objects={name: value for name, value in header.objects.items() if self.holds(name)},
            )
            for header in headers
        ]

    def require_some(self, kept: Iterable[str], names: Iterable[str], where: str) -> None:
        """Raise NotFoundError for a pattern that no stored tensor matches."""
        kept = list(kept)
        idle = [
            pattern
            for pattern, compiled in zip(self.patterns, self._compiled, strict=True)
            if not any(map(compiled.match, kept))
        ]
        if idle:
            from shardload.checkpoint.items import no_tensor

            raise no_tensor(idle, names, where=where)


def _compiled(pattern: str) -> re.Pattern[str]:
    numbers = [
        "(?:" + "|".join(map(str, range(int(low), int(high) + 1))) + ")"
        for low, high in _RANGE.findall(pattern)
        if int(low) <= int(high)
    ]
    pieces = re.split(r"(?<![^.])\d+-\d+(?![^.])", pattern)
    if len(pieces) != len(numbers) + 1:
        raise UsageError(f"{pattern!r} has a range that ends before it begins", cure='write it as "0-13"')
    texts = [_body(piece) for piece in pieces]
    whole = texts[0] + "".join(number + text for number, text in zip(numbers, texts[1:], strict=True))
    return re.compile(whole + r"\Z", re.DOTALL)


def _body(piece: str) -> str:
    """Return what fnmatch makes of a piece of a pattern, without the group that it puts around the whole."""
    text = translate(piece)  # "(?s:…)\\Z"
    return text[text.index(":") + 1 : text.rindex(")")]
