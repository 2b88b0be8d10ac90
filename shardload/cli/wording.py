"""Keywords of the Python interface in the words of the command that runs: its options."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from shardload.errors import OfReport, Wording, said

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardload.errors.wording import Words

# Parameters of commands that are called otherwise than the keyword that they become.
_PARAMETERS = {
    "local_files_only": ("offline",),
    "model_class": ("model_class", "model"),
}


def options_of(command: click.Command | None, arguments: Sequence[str] = ()) -> Words:
    """Return the words of a command (of all its subcommands, for a group): its options, shell-quoted.

    They are None for a keyword that the command has no option for, and for a value that no option can give. `arguments`
    are those that the command was called with.
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
        text = next((text for text in texts if text is not None), None)
        if text is not None and isinstance(value, OfReport):
            return f"{text}, which `{_writing(value, command, arguments)}` writes"
        return text

    return words


def _writing(name: str, command: click.Command | None, arguments: Sequence[str]) -> str:
    """Return the command line that writes the map of what a command was refused: the doctor with its arguments."""
    from shardload.cli.doctor import command as doctor

    if command is None or not arguments:
        return f"shardload doctor … --write-map {name}"
    with command.make_context(command.name, [*arguments], resilient_parsing=True) as context:
        given = {
            parameter: value
            for parameter, value in context.params.items()
            if context.get_parameter_source(parameter) is click.core.ParameterSource.COMMANDLINE
        }
    place = shlex.quote(str(given.pop("where", "…")))
    words = options_of(doctor)
    options = (words({"map_file": "key_map"}.get(name, name), value) for name, value in given.items())
    return " ".join(["shardload doctor", place, *(text for text in options if text), f"--write-map {name}"])


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
