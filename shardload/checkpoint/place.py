"""place_of_opened: the place that opens a checkpoint again, for texts that name it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.where import Where


def place_of_opened(checkpoint: Checkpoint) -> Where:
    """Return the place of a checkpoint: on the Hub at the commit that was opened, with all that chose its files."""
    given = checkpoint.given
    # The label of a folder has the subfolder in it; that of a repo has the commit.
    subfolder = None if checkpoint.source.is_local else given.subfolder
    return replace(given, name=checkpoint.label, revision=None, subfolder=subfolder)
