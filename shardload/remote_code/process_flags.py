"""Process-wide settings of torch that a repo's code may change at import; they are restored afterwards."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_lock = threading.Lock()
_inside = 0
_before: dict[str, Any] = {}


@contextmanager
def restored_flags() -> Iterator[None]:
    """Put torch's JIT flags and default dtype back after the block.

    When threads overlap, the first to enter notes the values and the last to leave restores them; the default dtype
    has one keeper with the construction of models. No lock is held in between: Python's own import locks would make
    that a deadlock.
    """
    from shardload.model.meta_init import default_dtype_kept

    global _inside  # noqa: PLW0603 - process-wide by nature
    with _lock:
        if _inside == 0:
            _before.update(_read())
        _inside += 1
    try:
        with default_dtype_kept():
            yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _write(_before)


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
