"""opened: the checkpoints that an entry point was given, open already or to be opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.checkpoint.checkpoint import Checkpoint, open_checkpoint
from shardload.errors import UsageError, Wording, keyword

if TYPE_CHECKING:
    from shardload.keywords import WhereKeywords
    from shardload.where import WhereLike


def opened(keywords: WhereKeywords, *given: WhereLike | Checkpoint) -> list[Checkpoint]:
    """Return the checkpoints that an entry point was given: those that are open already, and the others opened.

    Raises UsageError for keywords that choose files where every checkpoint is open already.
    """
    chosen = {"revision", "subfolder", "variant", "state_dict"} & {
        name for name, value in keywords.items() if value is not None
    }
    if chosen and all(isinstance(each, Checkpoint) for each in given):
        name = min(chosen)
        raise UsageError(
            Wording("{0} chooses files, and the checkpoint is open already", keyword(name)),
            where=f"{name}=",
            cure=Wording("pass {0} to open_checkpoint", keyword(name)),
        )
    return [each if isinstance(each, Checkpoint) else open_checkpoint(each, **keywords) for each in given]
