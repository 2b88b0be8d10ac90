"""No loader: imports torch and maps the files. Nothing that reads the files can be faster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LABEL = "no model: `import torch`, map the files"


def prepare(job: dict[str, Any]) -> Callable[[], None]:
    import mmap
    from pathlib import Path

    import torch

    def load() -> None:
        for path in sorted(Path(job["folder"]).glob(f"*.{job['suffix']}")):
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            torch.frombuffer(mapped, dtype=torch.uint8)

    return load
