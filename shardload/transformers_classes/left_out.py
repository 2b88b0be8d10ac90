"""The tensors that classes of transformers, and of the stand-in, leave out of their checkpoints, and make anew."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shardload.transformers_classes import LIBRARY, STAND_IN, pretrained_model

if TYPE_CHECKING:
    from torch import nn


def left_out(model: nn.Module) -> set[str]:
    """Return the names that the class of a whole model does not write.

    These are `_keys_to_ignore_on_save` as far as a load may lack them (`_keys_to_ignore_on_load_missing`): a name that
    no load gives back is written, whatever the class says.
    """
    if not isinstance(model, tuple(filter(None, map(pretrained_model, (STAND_IN, LIBRARY))))):
        return set()
    optional = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    ignored = getattr(model, "_keys_to_ignore_on_save", None) or ()
    return {name for name in ignored if any(re.search(pattern, name) for pattern in optional)}
