"""A repo's own way to generate: custom_generate/generate.py, whose `generate(model, …)` takes the method's place."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

from shardload.errors import RemoteCodeError
from shardload.remote_code.auto_map import ClassRef
from shardload.remote_code.importer import open_code

if TYPE_CHECKING:
    from torch import nn

    from shardload.checkpoint.sources.source import Source
    from shardload.where import CodeTrust, RemoteBase

FILE = "custom_generate/generate.py"
REF = ClassRef("custom_generate.generate", "generate")


def attach_generate(model: nn.Module, source: Source, trust: CodeTrust, base: RemoteBase) -> None:
    """Let the function of a repo's custom_generate/generate.py take the place of `model.generate`.

    The file and what it imports pass the gate as the repo's other code does; `base`, which serves the model, serves
    them. Raises UntrustedCodeError for code that was not approved, and RemoteCodeError for code that fails.
    """
    function = open_code(source, None, REF, replace(trust, remote_base=base), beside=()).load(REF)
    if not callable(function):
        raise RemoteCodeError(f"generate of {FILE} is no function", where=source.label)
    model.generate = functools.partial(function, model)  # type: ignore[assignment]
