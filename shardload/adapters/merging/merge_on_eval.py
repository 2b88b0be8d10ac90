"""merge_on_eval: eval() merges and train() unmerges, as in loralib, without its drift."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.adapters.attach import adapters_of, record_of
from shardload.adapters.merging.in_memory import merge, unmerge

if TYPE_CHECKING:
    from torch import nn


class MergeOnEval:
    """Called by every adapted layer whose mode is set; acts once, when the mode of the whole model is set."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, *, mode: bool) -> None:
        """Merge the active adapters for eval(), unmerge for train()."""
        adapters = adapters_of(self.model)
        # nn.Module.train sets the flag of the module that it is called on before those of its children.
        if adapters is None or self.model.training is not mode:
            return
        if mode and adapters.merged is not None:
            unmerge(self.model)
        elif not mode and adapters.merged is None and adapters.switch.chosen.weights:
            merge(self.model)


def follow_training(model: nn.Module) -> None:
    """Make eval() and train() of a model merge and unmerge its adapters, until the last one is deleted."""
    record_of(model).switch.follow = MergeOnEval(model)
