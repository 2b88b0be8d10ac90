"""Headers without files: what the doctor reads."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from shardload.diagnosis import diagnose
from shardload.diagnosis.finding import Case
from shardload.tensor_ref import DTYPE_BITS, Span, TensorRef

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.diagnosis.finding import Finding


def refs(
    shapes: Mapping[str, tuple[int, ...]], dtype: str | Mapping[str, str] = "F16"
) -> dict[str, TensorRef]:
    """Return references to tensors of one file, one behind the other."""
    found: dict[str, TensorRef] = {}
    at = 0
    for key, shape in shapes.items():
        code = dtype if isinstance(dtype, str) else dtype.get(key, "F16")
        size = DTYPE_BITS[code] // 8
        for length in shape:
            size *= length
        found[key] = TensorRef(key, code, tuple(shape), "model.safetensors", Span(at, at + size))
        at += size
    return found


def numbered(template: str, *counts: object) -> list[str]:
    """Return the keys of a template, its `{}` counted from 0 (a range or a list gives other numbers)."""
    numbers = [range(count) if isinstance(count, int) else count for count in counts]
    return [template.format(*indices) for indices in product(*numbers)]


def keys(shape: tuple[int, ...], template: str, *counts: object) -> dict[str, tuple[int, ...]]:
    """Return the keys of a template with one shape."""
    return dict.fromkeys(numbered(template, *counts), shape)


def case_of(stored, wanted, *, config=None, classes=None, dtype="F16") -> Case:
    """Return the case of two sets of keys with shapes."""
    return Case.of(wanted, refs(stored, dtype), config, classes)


def findings_of(stored, wanted, **options) -> dict[str, Finding]:
    """Return the findings by their code."""
    return {finding.code: finding for finding in diagnose(case_of(stored, wanted, **options))}


def cures(case: Case) -> bool:
    """Whether the case's map makes exactly the tensors that the model wants."""
    table = case.solution.key_map.map_headers(dict(case.stored)).tensors
    return {key: tensor.shape for key, tensor in table.items()} == dict(case.slots)
