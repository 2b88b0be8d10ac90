"""A repo's own way to generate: custom_generate/generate.py, whose `generate(model, …)` takes the method's place."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shardload.errors import RemoteCodeError
from shardload.remote_code.importer import GENERATE, GENERATE_FILE, open_code

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from shardload.checkpoint.sources.source import Source
    from shardload.where import CodeTrust, RemoteBase


def attach_generate(
    model: nn.Module,
    source: Source,
    config_json: Mapping[str, Any] | None,
    trust: CodeTrust,
    base: RemoteBase,
) -> None:
    """Let the function of a repo's custom_generate/generate.py take the place of `model.generate`.

    The file and what it imports pass the gate together with the model's code, whose namespace they share; `base`, which
    serves the model, serves them. Raises UntrustedCodeError for code that was not approved, and RemoteCodeError for
    code that fails.
    """
    function = open_code(source, config_json, GENERATE, replace(trust, remote_base=base)).load(GENERATE)
    if not callable(function):
        raise RemoteCodeError(f"generate of {GENERATE_FILE} is no function", where=source.label)
    model.generate = functools.partial(function, model)  # type: ignore[assignment]
