"""Groups: stored tensors that one converter of transformers takes together, and what its operations make of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from shardload.keymap.derived import Derived, Filled, Joined
from shardload.keymap.traced import TracedTensor
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


@dataclass
class Group:
    """The names that one converter takes for one result, by the pattern that each met."""

    converter: Any
    sources: dict[str, list[str]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All names."""
        return [name for names in self.sources.values() for name in names]

    def __str__(self) -> str:
        operations = " and ".join(type(each).__name__ for each in self.converter.operations)
        return f"{operations} of transformers"

    def converted(self, key: str, table: Mapping[str, Derived], model: nn.Module) -> dict[str, Derived]:
        """Return what the converter's operations make of the tensors, by whole names. Raises what an operation does.

        `key` is the name of the first result, with the first of the converter's patterns in it.
        """
        converter = self.converter
        made: Any = {
            pattern: [TracedTensor(table[name]) for name in names] for pattern, names in self.sources.items()
        }
        with torch.no_grad():
            for operation in converter.operations:
                made = operation.convert(
                    made,
                    source_patterns=converter.source_patterns,
                    target_patterns=converter.target_patterns,
                    full_layer_name=key,
                    model=model,
                    config=model.config,
                    missing_keys=None,
                )
        return {name: _derived(value) for name, value in _whole_names(key, made).items()}


def _whole_names(key: str, made: Mapping[str, Any]) -> dict[str, Any]:
    """Return results under whole names: operations name them by patterns, the first of which is a part of `key`."""
    whole = key.replace("*.", "0.")
    pattern = next((pattern for pattern in made if pattern in whole), None)
    if pattern is None:
        return dict(made)
    before, _, after = whole.partition(pattern)
    return {before + name + after: value for name, value in made.items()}


def _derived(value: Any) -> Derived:
    ref = (value[0] if isinstance(value, list) else value).ref
    # As the library does, a view that is not contiguous is copied: kernels of experts ask for it.
    copied = isinstance(ref, Filled) or (isinstance(ref, TensorRef) and ref.strides is not None)
    return Joined(ref.dtype, ref.shape, 0, (ref,)) if copied else ref
