"""Keywords of the Python interface in the words of the command that runs: its options."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from shardload.errors import Wording, said

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardload.errors.wording import Words

# Parameters of commands that are called otherwise than the keyword that they become.
_PARAMETERS = {
    "local_files_only": ("offline",),
    "model_class": ("model_class", "model"),
}


def options_of(command: click.Command | None) -> Words:
    """Return the words of a command (of all its subcommands, for a group): its options, shell-quoted.

    They are None for a keyword that the command has no option for, and for a value that no option can give.
    """
    options = {option.name: option for option in _options(command)}

    def words(name: str, value: Any) -> str | None:
        if name == "token":  # it would show in the shell's history
            return "HF_TOKEN (in the environment)" if value is ... else None
        if name == "trust_remote_code" and value not in {True, False, ...}:
            name, value = ("locked", True) if value == "locked" else ("lock", value)
        if name == "key_map" and isinstance(value, str):
            name = "map_file"
        if value is False:
            name, value = f"no_{name}", True
        found = (options.get(parameter) for parameter in _PARAMETERS.get(name, (name,)))
        texts = (_as_option(option, value) for option in found if option is not None)
        return next((text for text in texts if text is not None), None)

    return words


def worded(document: Any, words: Words) -> Any:
    """Return JSON data with every text in it in a front end's words."""
    if isinstance(document, dict):
        return {key: worded(value, words) for key, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [worded(value, words) for value in document]
    return said(document, words) if isinstance(document, Wording) else document


def _options(command: click.Command | None) -> Iterator[click.Option]:
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from _options(inner)
    elif command is not None:
        yield from (parameter for parameter in command.params if isinstance(parameter, click.Option))


def _as_option(option: click.Option, value: Any) -> str | None:
    name = next(name for name in option.opts if name.startswith("--"))
    if option.is_flag:
        return name if value is True or value is ... else None
    if value is ...:
        return f"{name} {option.metavar or str(option.name).upper()}"
    if isinstance(value, dict):
        if any("=" in f"{old}{new or ''}" for old, new in value.items()):
            return None  # OLD=NEW can't say it
        value = [f"{old}={'' if new is None else new}" for old, new in value.items()]
    values = value if isinstance(value, (list, tuple)) else [value]
    return " ".join(f"{name} {shlex.quote(str(one))}" for one in values)
