"""`transformers.generation.logits_process`: the bases that remote code derives its processors from."""

from __future__ import annotations

import inspect
from typing import Any

from shardload.remote_code.shim._missing import later_class


class LogitsProcessor:
    """Changes the scores of the next token; subclasses define `__call__(input_ids, scores)`."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return the changed scores, (batch, vocabulary)."""
        raise NotImplementedError(f"{type(self)} defines no __call__")


class LogitsWarper(LogitsProcessor):
    """A processor that is applied when tokens are sampled."""


class LogitsProcessorList(list[Any]):
    """Processors applied one after another."""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return the scores, (batch, vocabulary), after every processor."""
        for processor in self:
            # A processor with parameters besides ids and scores is given the caller's keyword arguments.
            wants_more = len(inspect.signature(processor.__call__).parameters) > 2
            scores = processor(input_ids, scores, **kwargs) if wants_more else processor(input_ids, scores)
        return scores


TemperatureLogitsWarper = later_class("TemperatureLogitsWarper", __name__)
TopKLogitsWarper = later_class("TopKLogitsWarper", __name__)
TopPLogitsWarper = later_class("TopPLogitsWarper", __name__)
RepetitionPenaltyLogitsProcessor = later_class("RepetitionPenaltyLogitsProcessor", __name__)
NoRepeatNGramLogitsProcessor = later_class("NoRepeatNGramLogitsProcessor", __name__)
