"""What classes of an installed transformers ask of a load: the names and parts that their checkpoints have."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from torch import nn

    from shardload.transformers_classes.conversion import ClassConversion
    from shardload.transformers_classes.legacy_names import LegacyNames

STAND_IN = "shardload.transformers_shim.modeling_utils"
LIBRARY = "transformers.modeling_utils"


def conversions(
    kinds: Iterable[type],
    modules: Iterable[tuple[str, nn.Module]],
    keys: Iterable[str],
    stored: Collection[str] | None = None,
) -> tuple[ClassConversion | LegacyNames, ...]:
    """Return the rules that turn a checkpoint into a model that has classes of transformers in it; mostly none.

    `kinds` are the types of the model's modules, `modules` the modules by prefix, `keys` the names of its tensors. The
    outermost modules of transformers, and of the stand-in, get a rule each, which knows of those inside. A rule that
    only renames is left out where it changes none of the names that are `stored`.
    """
    bases: list[Any] = [
        getattr(sys.modules.get(home), "PreTrainedModel", None) for home in (STAND_IN, LIBRARY)
    ]
    present = [base for base in bases if base is not None and any(issubclass(kind, base) for kind in kinds)]
    if not present:
        return ()
    known, names = list(modules), list(keys)
    rules: list[ClassConversion | LegacyNames] = []
    for (
        base
    ) in present:  # what the stand-in serves can hold modules of transformers, and not the other way round
        make = _kind_of_rule(base)
        for prefix, module in _outermost(known, base):
            own = frozenset(name[len(prefix) :] for name in names if name.startswith(prefix))
            rules.append(make(module, prefix, own))
    return tuple(rule for rule in rules if stored is None or rule.takes(stored))


def _outermost(modules: Iterable[tuple[str, nn.Module]], base: type) -> list[tuple[str, nn.Module]]:
    found: list[tuple[str, nn.Module]] = []
    for prefix, module in modules:
        if isinstance(module, base) and not any(prefix.startswith(outer) for outer, _ in found):
            found.append((prefix, module))
    return found


def _kind_of_rule(base: type) -> type[ClassConversion | LegacyNames]:
    """Return the rule for classes with this base: transforms came with transformers 5."""
    if base.__module__ == LIBRARY and "transformers.core_model_loading" in sys.modules:
        from shardload.transformers_classes.conversion import ClassConversion

        return ClassConversion
    from shardload.transformers_classes.legacy_names import LegacyNames

    return LegacyNames
