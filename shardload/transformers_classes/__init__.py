"""What classes of an installed transformers ask of a load: the names and parts that their checkpoints have."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from torch import nn

    from shardload.transformers_classes.conversion import ClassConversion
    from shardload.transformers_classes.legacy_names import LegacyNames

STAND_IN = "shardload.transformers_shim.modeling_utils"
LIBRARY = "transformers.modeling_utils"


def pretrained_model(home: str) -> Any:
    """Return the base class `PreTrainedModel` of a module, or None while nobody has imported that module."""
    return getattr(sys.modules.get(home), "PreTrainedModel", None)


def library_class(model: nn.Module) -> str | None:
    """Return the name by which an installed transformers has the class of a model, or None."""
    from shardload.model.wrapper_tensors import class_of

    name = class_of(model).__name__
    kind = getattr(sys.modules.get("transformers"), name, None)
    return name if isinstance(kind, type) and isinstance(model, kind) else None


def conversions(
    kinds: Collection[type],
    modules: Iterable[tuple[str, nn.Module]],
    keys: Iterable[str],
    stored: Collection[str] | None = None,
) -> tuple[ClassConversion | LegacyNames, ...]:
    """Return the rules that turn a checkpoint into a model that has classes of transformers in it; mostly none.

    `kinds` are the types of the model's modules, `modules` the modules by prefix, `keys` the names of its tensors. The
    outermost modules of transformers, of its parts, and of the stand-in get a rule each, which knows of those inside. A
    rule that only renames is left out where it changes none of the names that are `stored`.
    """
    bases = [pretrained_model(home) for home in (STAND_IN, LIBRARY)]
    if not any(issubclass(kind, tuple(filter(None, bases))) for kind in kinds):
        return ()
    from shardload.transformers_classes.legacy_names import LegacyNames
    from shardload.transformers_classes.part_transforms import has_parts, part_base

    modules = list(modules)
    parts = (
        _outermost(lambda module: part_base(type(module)) is not None, modules) if has_parts(kinds) else []
    )
    inside_parts = tuple(prefix for prefix, _ in parts)
    beside = [
        (prefix, module) for prefix, module in modules if not prefix.startswith(inside_parts or ("\0",))
    ]
    stand_in, library = (_outermost(_has_base(base), beside) for base in bases)

    names = list(keys)
    rules: list[ClassConversion | LegacyNames] = []
    # What the stand-in serves can hold modules of transformers, and not the other way round.
    for prefix, module in stand_in:
        own_rules = [*library, *parts]
        within = tuple(inner[len(prefix) :] for inner, _ in own_rules if inner.startswith(prefix))
        rules.append(LegacyNames(module, prefix, _below(prefix, names), within))
    kind: type[ClassConversion | LegacyNames] = LegacyNames
    if library and "transformers.core_model_loading" in sys.modules:  # since transformers 5
        from shardload.transformers_classes.conversion import ClassConversion

        kind = ClassConversion
    rules += [kind(module, prefix, _below(prefix, names)) for prefix, module in library]
    if parts:
        from shardload.transformers_classes.conversion import ClassConversion

        rules += [
            ClassConversion(module, prefix, _below(prefix, names), of_parts=True) for prefix, module in parts
        ]
    return tuple(rule for rule in rules if stored is None or rule.takes(stored))


def _has_base(base: Any) -> Callable[[nn.Module], bool]:
    """Return a test for modules of classes that have this base; None is the base of none."""
    return lambda module: base is not None and isinstance(module, base)


def _outermost(
    wanted: Callable[[nn.Module], bool], modules: Sequence[tuple[str, nn.Module]]
) -> list[tuple[str, nn.Module]]:
    """Return the outermost modules among those that are wanted."""
    found: list[tuple[str, nn.Module]] = []
    for prefix, module in modules:
        if wanted(module) and not any(prefix.startswith(outer) for outer, _ in found):
            found.append((prefix, module))
    return found


def _below(prefix: str, names: Iterable[str]) -> frozenset[str]:
    return frozenset(name[len(prefix) :] for name in names if name.startswith(prefix))
