"""merge_on_eval: loralib's habit, on request and without its drift: eval() merges, train() takes it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.adapters.attached import adapters_of, record_of
from shardload.adapters.merging.in_memory import merge, unmerge

if TYPE_CHECKING:
    from torch import nn


class MergeOnEval:
    """Called by an adapted layer when its `training` is set; acts once, when it is set for the whole model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, *, mode: bool) -> None:
        """Merge what is active for eval(), unmerge for train()."""
        adapters = adapters_of(self.model)
        # nn.Module.train sets the flag of the module that it is called on before those of its children.
        if adapters is None or self.model.training is not mode:
            return
        if mode and adapters.merged is not None:
            unmerge(self.model)
        elif not mode and adapters.merged is None and adapters.switch.chosen.weights:
            merge(self.model)


def follow_training(model: nn.Module) -> None:
    """Let eval() and train() of a model with adapters merge and unmerge them, until the last one is deleted."""
    record_of(model).switch.follow = MergeOnEval(model)
