"""Fingerprint of the base that an adapter was trained on: a few values of its layers, in the file's metadata."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import torch

from shardload.adapters.adapter_report import AdapterFault, shown
from shardload.model.wrapper_tensors import is_wrapper

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shardload.adapters.adapter_match import AdapterMatch

METADATA_KEY = "shardload.base"
_LAYERS = 16
_VALUES = 8
_LONGEST = 100_000
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


def fingerprint_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the fingerprint as JSON: name, shape, dtype and some values of a few of the base's tensors.

    Quantised tensors, wrappers of other tensors and tensors on meta are left out.
    """
    usable = {name: tensor for name, tensor in tensors.items() if _samples(tensor) is not None}
    names = sorted(usable)
    step = max(1, math.ceil(len(names) / _LAYERS))
    found = {
        name: {
            "shape": list(usable[name].shape),
            "dtype": str(usable[name].dtype).removeprefix("torch."),
            "values": _samples(usable[name]).tolist(),  # type: ignore[union-attr]
        }
        for name in names[::step]
    }
    return json.dumps({"version": 1, "tensors": found})


def compare_base(text: str, match: AdapterMatch, *, strict: bool) -> None:
    """Add a fault (a warning without `strict`) when the model's tensors differ from the file's fingerprint."""
    terms = [(found, found.reading.term.attribute) for found in match.layers]
    base = {f"{found.entry.path}.{name}": found.layer._parameters.get(name) for found, name in terms}
    faults = list(base_faults(text, base))
    if strict:
        match.faults += faults
    else:
        match.warnings += [str(fault) for fault in faults]


def base_faults(text: str, tensors: Mapping[str, torch.Tensor | None]) -> Iterable[AdapterFault]:
    """Yield a fault when the base's tensors differ from a fingerprint. Names that the base lacks are skipped.

    A base in another dtype fits when the values of one side are those of the other, rounded to its dtype. A text that
    is not a fingerprint of this version yields nothing.
    """
    other = []
    for name, stored in _parsed(text).items():
        tensor = tensors.get(name)
        values = None if tensor is None else _samples(tensor)
        if tensor is None or values is None:
            continue
        dtype = _DTYPES[stored["dtype"]]
        then = torch.tensor(stored["values"], dtype=torch.float64).to(dtype)
        now = values.to(tensor.dtype)
        fits = list(tensor.shape) == stored["shape"] and (
            torch.equal(then.to(now.dtype), now) or torch.equal(now.to(then.dtype), then)
        )
        if not fits:
            other.append(name)
    if other:
        more = f" and of {len(other) - 1} more tensors" if len(other) > 1 else ""
        said = (
            f"the adapter was trained on a base with other values of it{more} (strict=False loads it anyway)"
        )
        yield AdapterFault("base", other[0], said)


def _samples(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return a few values spread over a tensor, as float64; None when they can't be compared."""
    if tensor.is_meta or is_wrapper(tensor) or tensor.dtype not in _DTYPES.values() or not tensor.numel():
        return None
    count = tensor.numel()
    flat = [position * (count - 1) // (_VALUES - 1) for position in range(_VALUES)]
    with torch.no_grad():
        index = torch.tensor(flat, device=tensor.device)
        return torch.take(tensor, index).to("cpu", torch.float64)


def _parsed(text: str) -> dict[str, Any]:
    """Return the tensors of a fingerprint, {} when the text is not one. The text is untrusted."""
    try:
        data: Any = json.loads(text) if len(text) <= _LONGEST else {}
        tensors = data["tensors"] if data["version"] == 1 else {}
        return {
            shown(name): stored
            for name, stored in tensors.items()
            if stored["dtype"] in _DTYPES
            and all(isinstance(value, (int, float)) for value in stored["values"])
            and len(stored["values"]) == _VALUES
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
