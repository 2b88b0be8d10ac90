"""Groups: stored tensors that one converter of transformers takes together, and what its operations make of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from shardload.errors import MismatchError
from shardload.keymap.derived import Derived, Filled, Joined
from shardload.keymap.traced import TracedTensor
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

_SIGNS = r"\.^$"  # signs of a pattern that are not in a name


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

    @property
    def lacks(self) -> str:
        """What to say of the patterns of a list that no tensor met; "" where each has some."""
        absent = [each for each in self.converter.source_patterns if "*" in each and each not in self.sources]
        return (
            f"no tensor is stored for {' and '.join(each.strip(_SIGNS) for each in absent)}" if absent else ""
        )

    def refuse_gaps(self) -> None:
        """Raise MismatchError unless each list of tensors has the numbers 0 to n-1, with the same n.

        The library stacks a list in its order, whatever the numbers: behind a gap each tensor would get the place of
        the one before it.
        """
        numbered = {
            pattern: _numbers(pattern, self.sources[pattern]) for pattern in self.sources if "*" in pattern
        }
        count = max((number + 1 for numbers in numbered.values() for number in numbers), default=0)
        for pattern, numbers in numbered.items():
            names = self.sources[pattern]
            if absent := [number for number in range(count) if number not in numbers]:
                shown = ", ".join(
                    f"{pattern.strip(_SIGNS).replace('*', str(number))}" for number in absent[:4]
                )
                more = f" and {len(absent) - 4} more" if len(absent) > 4 else ""
                raise MismatchError(
                    f"{shown}{more} of 0 to {count - 1} {'is' if len(absent) == 1 else 'are'} missing"
                )
            if len(numbers) > count:
                twice = [
                    name for name, number in zip(names, numbers, strict=True) if numbers.count(number) > 1
                ]
                raise MismatchError(f"{' and '.join(twice[:2])} have one number")

    def refuse_taken(self, holders: Mapping[str, str], results: Iterable[str]) -> None:
        """Raise MismatchError where another stored tensor has the name of a result."""
        for name in results:
            if name in holders:
                held = "stored too" if holders[name] == name else f"stored too, as {holders[name]}"
                raise MismatchError(f"{self.names[0]} is a part of {name}, which is {held}")

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


def _numbers(pattern: str, names: Sequence[str]) -> list[int]:
    """Return the numbers that stand in names for a pattern's `*`.

    Names may have been renamed before they met the pattern, so the number is the one in which they differ; of a single
    name it is as many numbers from the end as in the pattern.
    """
    found = [[int(digits) for digits in re.findall(r"\d+", name)] for name in names]
    differing = [place for place, column in enumerate(zip(*found, strict=False)) if len(set(column)) > 1]
    if len(differing) == 1:
        return [numbers[differing[0]] for numbers in found]
    behind = len(re.findall(r"\d+", pattern.rpartition("*")[2]))
    return [numbers[-1 - behind] for numbers in found if len(numbers) > behind]


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
