"""Names of floating dtypes, as people write them and without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.errors import UsageError, Wording

if TYPE_CHECKING:
    import torch

FLOATS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
"""The dtype code of each floating dtype that weights are cast to."""

SHORT_NAMES = {
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "float": "float32",
}
"""What else they are called."""


def float_code(dtype: str | torch.dtype | None) -> str | None:
    """Return the dtype code of "float16", "bf16" or `torch.float32`; None for "auto" and None. Raises UsageError."""
    if dtype is None or dtype == "auto":
        return None
    name = str(dtype).removeprefix("torch.")
    name = SHORT_NAMES.get(name, name)
    if name not in FLOATS:
        raise UsageError(
            Wording("{dtype} is not a dtype to load weights in", dtype=dtype),
            cure='pass "auto" (as stored), "float16", "bfloat16", "float32" or "float64"',
        )
    return FLOATS[name]
