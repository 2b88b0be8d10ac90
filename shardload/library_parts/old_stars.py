"""What `from transformers.models.x.modeling_x import *` brings to code that parts serve.

Until 4.47 the library's model files had no `__all__`: such a line brought every class of the file, with what the file
itself had imported: torch, `nn`, names of `typing`, outputs, docstring decorators. Code with such a line needs these.
"""

from __future__ import annotations

import copy
import math
import typing
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from shardload.transformers_shim import front as shim

if TYPE_CHECKING:
    from types import FrameType, ModuleType

_TYPING = ("Any", "Callable", "Dict", "List", "Optional", "Sequence", "Tuple", "Union")
_LOSSES = ("BCEWithLogitsLoss", "CrossEntropyLoss", "MSELoss")
_IMPORTED_BY_OLDER_FILES = {
    "F": functional, "copy": copy, "math": math, "nn": nn, "torch": torch, "warnings": warnings,
    **{name: getattr(typing, name) for name in _TYPING},
    **{name: getattr(nn, name) for name in _LOSSES},
}  # fmt: skip


def star_of_part(part: ModuleType, frame: FrameType) -> ModuleType:
    """Return a module with all public names of a part, and those of what older files had imported that the code reads.

    `frame` is that of the module whose line star-imports.
    """
    return shim.star_module(part.__name__, frame, _of_older_file, vars(part))


def _of_older_file(name: str) -> Any:
    if name in _IMPORTED_BY_OLDER_FILES:
        return _IMPORTED_BY_OLDER_FILES[name]
    return "" if name.endswith("DOCSTRING") else shim.known(shim.module_of(""), name)
