"""`shardload inspect` of an adapter: its headers, its config, and how it fits a base."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shardload.cli import output

if TYPE_CHECKING:
    from shardload.where import Where

_CONFIG = "adapter_config.json"
_WEIGHTS = re.compile(r"adapter(_model|s|_\d+)\.(safetensors|bin|pt)")


def is_adapter(where: str, subfolder: str | None) -> bool:
    """Whether a local path is the folder or the weight file of an adapter, judged by names alone."""
    path = Path(where).expanduser()
    if path.is_dir():
        path = path / (subfolder or "")
        return (path / _CONFIG).is_file() and not (path / "config.json").is_file()
    return path.is_file() and (path.name == _CONFIG or _WEIGHTS.fullmatch(path.name) is not None)


def show(where: Where, base: str | None, alpha: float | None, *, as_json: bool) -> None:
    """Print the inspection. Exits with 1 when a load would raise."""
    from shardload.adapters.inspection import inspect_adapter

    found = inspect_adapter(where, base, alpha=alpha)
    if as_json:
        output.say_json(found.to_dict())
    else:
        output.say(output.escape_lines(str(found)))
    if found.faults:
        raise click.exceptions.Exit(1)
