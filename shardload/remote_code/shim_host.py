"""The host of the stand-in for transformers: the functions of the loader that its classes need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.checkpoint.sources import find_source
from shardload.model.meta_init import constructing
from shardload.remote_code.code import PACKAGE
from shardload.remote_code.guarded_library import guarded, own_object
from shardload.remote_code.namespaces import namespace_of
from shardload.remote_code.tokenizer_files import constructor_arguments
from shardload.transformers_shim.host import ClassCode, Host
from shardload.where import Where

if TYPE_CHECKING:
    from collections.abc import Callable


def _tokenizer_arguments(where: Any, cls: type[Any], **hub: Any) -> dict[str, Any]:
    source, _ = find_source(Where(where, **hub))
    return constructor_arguments(source, cls)


def _code_of(cls: type[Any]) -> ClassCode | None:
    namespace = namespace_of(cls.__module__)
    if namespace is None:
        return None
    module = cls.__module__.removeprefix(f"{namespace.package}.")
    return ClassCode(module, {file.name: file.content for file in namespace.code.files})


def host_with(save: Callable[..., object]) -> Host:
    """Return the loader that the stand-in serves, as one object; `save` stands above this room and is given."""
    return Host(save, constructing, _tokenizer_arguments, _code_of, f"{PACKAGE}.", own_object, guarded)
