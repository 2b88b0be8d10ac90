"""Dtypes as people write them: one parser, which needs torch only where torch's own dtype is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.errors import UsageError, Wording
from shardload.tensor_ref import TORCH_NAMES

if TYPE_CHECKING:
    import torch

FLOATS = {TORCH_NAMES[code]: code for code in ("F16", "BF16", "F32", "F64")}
"""The dtype code of each floating dtype that weights are cast to, by torch's name."""

SHORT_NAMES = {
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "float": "float32",
    "fp64": "float64",
    "double": "float64",
}
"""Other names of these dtypes."""


def float_code(dtype: str | torch.dtype | None) -> str | None:
    """Return the dtype code of "float16", "bf16" or `torch.float32`. Raises UsageError.

    None stands for the stored dtypes, "auto", "stored" and None.
    """
    if dtype is None or dtype in ("auto", "stored"):
        return None
    name = _long_name(dtype)
    if name not in FLOATS:
        raise UsageError(
            Wording("{dtype} is not a dtype to load weights in", dtype=dtype),
            cure='pass "auto", "stored", "float16", "bfloat16", "float32" or "float64"',
        )
    return FLOATS[name]


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return the torch dtype of "float16", "bf16" or `torch.float32`; None as in `float_code`. Raises UsageError."""
    code = float_code(dtype)
    return None if code is None else torch_dtype(TORCH_NAMES[code])


def torch_dtype(name: str | torch.dtype) -> torch.dtype:
    """Return any torch dtype by its name ("int8", "torch.float8_e4m3fn", "bf16"). Raises ValueError for other names."""
    import torch

    found = getattr(torch, _long_name(name), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is not a dtype of torch")  # noqa: TRY004 - a wrong value
    return found


def _long_name(dtype: str | torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return SHORT_NAMES.get(name, name)
