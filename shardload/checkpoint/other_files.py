"""What a folder or a repo without a checkpoint holds instead, by the names of its files."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def cure_by_names(names: Sequence[str]) -> str | None:
    """Return the cure for weights in a format that is known by its files' names; None for any other."""
    others = [name for name in names if name.endswith(".ggml")]
    if others:
        return f"{others[0]} is a file of llama.cpp: use the repo that it was converted from"
    return None
