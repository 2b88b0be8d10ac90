"""Process-wide settings of torch that a repo's code may change at import; they are restored afterwards."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# For each import that changes flags, what they were before the oldest import that overlaps it.
_FLAGS_BEFORE: dict[object, dict[str, Any]] = {}
os.register_at_fork(after_in_child=_FLAGS_BEFORE.clear)


@contextmanager
def restored_flags(source: str) -> Iterator[None]:
    """Put torch's JIT flags and default dtype back after the block, as far as the module's `source` names them.

    They hold for all threads: what this module does not touch is another's business.
    """
    import torch

    from shardload.model.default_dtype_kept import DTYPE_BEFORE, sets_default_dtype

    block = object()
    if "_jit_" in source:
        _FLAGS_BEFORE[block] = [*_FLAGS_BEFORE.values(), _read()][0]
    if sets_default_dtype(source):
        DTYPE_BEFORE[block] = [*DTYPE_BEFORE.values(), torch.get_default_dtype()][0]
    flags, dtype = _FLAGS_BEFORE.get(block), DTYPE_BEFORE.get(block)
    try:
        yield
    finally:
        _FLAGS_BEFORE.pop(block, None)
        DTYPE_BEFORE.pop(block, None)
        if flags is not None:
            _write(flags)
        if dtype is not None:
            torch.set_default_dtype(dtype)


def _read() -> dict[str, Any]:
    import torch

    c: Any = torch._C
    # The two profiling flags can be read only by setting them: each setter returns the old value.
    mode = c._jit_set_profiling_mode(True)
    executor = c._jit_set_profiling_executor(True)
    c._jit_set_profiling_mode(mode)
    c._jit_set_profiling_executor(executor)
    return {
        "_jit_set_profiling_mode": mode,
        "_jit_set_profiling_executor": executor,
        "_jit_override_can_fuse_on_cpu": c._jit_can_fuse_on_cpu(),
        "_jit_override_can_fuse_on_gpu": c._jit_can_fuse_on_gpu(),
        "_jit_set_texpr_fuser_enabled": c._jit_texpr_fuser_enabled(),
    }


def _write(flags: dict[str, Any]) -> None:
    import torch

    for name, value in flags.items():
        getattr(torch._C, name)(value)
