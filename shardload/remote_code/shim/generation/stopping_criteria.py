"""`transformers.generation.stopping_criteria`: the bases that remote code derives its criteria from."""

from __future__ import annotations

from typing import Any

from shardload.remote_code.shim._missing import later_class


class StoppingCriteria:
    """Says when generation ends; subclasses define `__call__(input_ids, scores)`."""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> bool:
        """Return whether to stop."""
        raise NotImplementedError(f"{type(self)} defines no __call__")


class StoppingCriteriaList(list[Any]):
    """Criteria of which any one stops the generation."""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> bool:
        """Return whether any criterion says to stop."""
        return any(criterion(input_ids, scores, **kwargs) for criterion in self)

    @property
    def max_length(self) -> int | None:
        """The longest sequence that a criterion of the list allows, or None."""
        return next((c.max_length for c in self if getattr(c, "max_length", None) is not None), None)


MaxLengthCriteria = later_class("MaxLengthCriteria", __name__)
MaxTimeCriteria = later_class("MaxTimeCriteria", __name__)
