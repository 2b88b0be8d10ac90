"""The transforms that transformers lists for its classes, for parts: for its own model files run beside a repo's code.

The lists and the operations are the library's own, in files that run as parts too. Which list belongs to a module is
told by the nearest class of the library among its bases: a repo's class that derives from it has its tensors.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from shardload.library_parts.importer import part_module
from shardload.library_parts.release import installed, is_part

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import nn


def part_base(kind: type) -> Any:
    """Return the nearest model class of the library that a class is or derives from, or None."""
    return next((base for base in kind.__mro__ if is_part(base) and hasattr(base, "config_class")), None)


def has_parts(kinds: Collection[type]) -> bool:
    """Return whether there are parts among these types, of a release that lists transforms (since 5.0)."""
    release = installed() if any(part_base(kind) is not None for kind in kinds) else None
    return release is not None and release.file("conversion_mapping") is not None


def transforms_of(model: nn.Module, *, legacy: bool = True) -> list[Any]:
    """Return the transforms of a part and of the parts inside it, as the library collects them for its own classes.

    A list found by the name of a class, or else by a `model_type`, holds for all that is inside; a part within a part
    is not given the same list again. `legacy` adds the renames of old names that hold for every class.
    """
    mapping = part_module("conversion_mapping")
    found: list[Any] = []
    claimed: defaultdict[str, list[str]] = defaultdict(list)
    for path, module in model.named_modules():
        kind = part_base(type(module))
        if kind is None or _is_claimed(path, claimed[kind.__name__]):
            continue
        model_type = _model_type(module, kind)
        listed = mapping.get_checkpoint_conversion_mapping(kind.__name__)
        by_class = listed is not None
        if not by_class and model_type and not _is_claimed(path, claimed[model_type]):
            listed = mapping.get_checkpoint_conversion_mapping(model_type)
        if listed is None:
            continue
        for transform in listed if path else ():
            transform.scope_prefix = path.removeprefix(str(model.base_model_prefix)).removeprefix(".")
            transform.base_model_prefix = model.base_model_prefix
        found += listed
        claimed[kind.__name__].append(path)
        if not by_class:
            claimed[model_type].append(path)
    return [*found, *(mapping.get_checkpoint_conversion_mapping("legacy") if legacy else ())]


def _is_claimed(path: str, claims: list[str]) -> bool:
    return any(not claim or path.startswith(f"{claim}.") for claim in claims)


def _model_type(module: Any, kind: Any) -> str:
    config = module.config
    return str(getattr(config if is_part(type(config)) else kind.config_class, "model_type", ""))
