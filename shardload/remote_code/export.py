"""The repo's code that is saved with a model: the very bytes that were trusted and ran."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.errors import ShardloadError
from shardload.model.wrapper_tensors import class_of
from shardload.remote_code.auto_map import parse_reference
from shardload.remote_code.code import file_of
from shardload.remote_code.namespaces import namespace_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


def exported_code(model: nn.Module, auto_map: Mapping[str, Any]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the code files of a model's class, by name, and the entries of `auto_map` that lead into them.

    Entries that named another repo now name the files beside the weights. Entries of files that did not run (a
    tokenizer's, for example) are left out. Both are empty for a class that is not a repo's.
    """
    namespace = namespace_of(class_of(model).__module__)
    if namespace is None:
        return {}, {}
    files = {file.name: file.content for file in namespace.code.files}
    entries = {name: _local(value, frozenset(files)) for name, value in auto_map.items()}
    return files, {name: value for name, value in entries.items() if value is not None}


def _local(value: Any, names: frozenset[str]) -> Any:
    """Return an entry of auto_map without the name of another repo; None where its file is not in `names`."""
    if isinstance(value, (list, tuple)):
        inside = [_local(item, names) for item in value]
        return inside if any(item is not None for item in inside) else None
    try:
        ref = parse_reference(value)
        file_of(ref.module, names, "")
    except (ShardloadError, AttributeError):  # AttributeError: not a string
        return None
    return f"{ref.module}.{ref.name}"
