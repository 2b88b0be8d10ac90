"""A package of trusted code: its name in this process, its files, and who serves its imports of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardload.remote_code.code import Base, Code


@dataclass(frozen=True)
class Namespace:
    """Code that was trusted in this process, and its package name. `base` serves its imports of transformers."""

    package: str
    code: Code
    base: Base
