"""What classes of an installed transformers ask of a load: the names and parts that their checkpoints have."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from shardload.transformers_classes.conversion import ClassConversion


def conversions(
    kinds: Iterable[type], modules: Iterable[tuple[str, nn.Module]], keys: Iterable[str]
) -> tuple[ClassConversion, ...]:
    """Return the rules that turn a checkpoint into a model that has classes of transformers in it; mostly none.

    `kinds` are the types of the model's modules, `modules` the modules by prefix, `keys` the names of its tensors. The
    outermost modules of transformers get a rule each, which knows of those inside.
    """
    base: Any = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
    if base is None or "transformers.core_model_loading" not in sys.modules:
        return ()
    if not any(issubclass(kind, base) for kind in kinds):
        return ()
    from shardload.transformers_classes.conversion import ClassConversion

    found: list[tuple[str, nn.Module]] = []
    for prefix, module in modules:
        if isinstance(module, base) and not any(prefix.startswith(outer) for outer, _ in found):
            found.append((prefix, module))
    names = list(keys)
    return tuple(
        ClassConversion(
            module, prefix, frozenset(name[len(prefix) :] for name in names if name.startswith(prefix))
        )
        for prefix, module in found
    )
