"""Names of the installed release of transformers, for tests that run with several."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def _release() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version("transformers").split(".")[:2])
    except PackageNotFoundError:
        return (0, 0)


RELEASE = _release()
"""(major, minor); (0, 0) without it."""
DTYPE = "dtype" if RELEASE >= (4, 56) else "torch_dtype"
"""The name of the dtype: as a keyword of `from_pretrained`, in config.json and of configs."""
