"""Cures for a folder or a repo whose files lie in folders of their own inside it."""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING

from shardload.errors import Wording
from shardload.errors.wording import in_python

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from shardload.checkpoint.sources.source import Source

_SHOWN = 3
ADAPTERS = "adapters"
WEIGHTS = "weights"
_RANK = re.compile(r"(?:^|/)mp_rank_\d+(?:_\d+)*$")


def cure_by_folder(source: Source, folders: Iterable[str], what: str) -> str:
    """Return the cure that names the inner folders which hold `what`.

    A folder of this machine is named by its path: that is right for the base, for an adapter and for a file to compare
    with, while `subfolder` says something about the base alone.
    """
    found = sorted(set(folders))
    ranks = _ranks(found) if what == WEIGHTS else {}
    found = [folder for folder in found if folder.rpartition("/")[0] not in ranks or not _RANK.search(folder)]
    if not found:
        return _of_ranks(ranks)
    paths = [os.path.join(source.label, folder) if source.is_local else folder for folder in found[:_SHOWN]]  # noqa: PTH118
    more = f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
    listed = ", ".join(map(shlex.quote, paths)) + more  # a path with spaces or commas can be typed too
    if source.is_local and what == WEIGHTS and _has_the_config_alone(source, found):
        inside = f"it holds {what} in folders of their own, which have no config.json"
        return f"{inside}: copy the one of {source.label} into the folder that you mean, and pass that folder: {listed}"
    if source.is_local:
        return f"it holds {what} in folders of their own: pass the path of one: {listed}"
    if what == ADAPTERS:
        # In Python's words: the subfolder of a load, and of a command, is that of the base.
        taken = f"load_adapter(model, {source.label!r}, {in_python('subfolder', found[0])})"
        return f"it holds {what} in folders of their own, {listed}: {taken} takes one"
    return Wording(
        "it holds {0} in folders of their own: pass {subfolder}, one of {1}", what, listed, subfolder=...
    )


def _ranks(folders: Iterable[str]) -> dict[str, list[str]]:
    """Return the folders that are parts of one model, as Megatron's ranks write them, by the folder that holds them."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        if _RANK.search(folder):
            found.setdefault(folder.rpartition("/")[0], []).append(folder)
    return {parent: parts for parent, parts in found.items() if len(parts) > 1}


def _of_ranks(ranks: Mapping[str, Sequence[str]]) -> str:
    """Return the cure for models of which each is cut into such folders."""
    texts = []
    for parts in ranks.values():
        more = f" (and {len(parts) - _SHOWN} more)" if len(parts) > _SHOWN else ""
        texts.append(f"{', '.join(parts[:_SHOWN])}{more} are the {len(parts)} ranks of one model")
    return (
        f"{'; '.join(texts[:_SHOWN])}: Megatron cut it, and none is a model of its own. "
        "Merge them with the converter of the program that trained it, and load what that writes; "
        "no cure is known for the parts alone"
    )


def _has_the_config_alone(source: Source, folders: Iterable[str]) -> bool:
    """Whether the config lies beside the inner folders, and in none of them: trainers keep it there."""
    names = set(source.names())
    return "config.json" in names and not any(f"{folder}/config.json" in names for folder in folders)
