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
_KEYWORDS = {"map_file": "key_map", "model": "model_class"}
_DOCTOR = "shardload doctor …"


def options_of(command: click.Command | None, doctor: str = _DOCTOR) -> Words:
    """Return the words of a command (of all its subcommands, for a group): its options, shell-quoted.

    They are None for a keyword that the command has no option for, and for a value that no option can give. `doctor` is
    the command line that writes a map.
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
            return f"{text}, which `{doctor} --write-map {value}` writes"
        return text

    return words


def words_in(context: click.Context) -> Words:
    """Return the words of the command that runs; the doctor's line has what it was called with."""
    group = context.find_root().command
    doctor = group.get_command(context, "doctor") if isinstance(group, click.Group) else None
    return options_of(context.command, _DOCTOR if doctor is None else doctor_line_of(context, doctor))


def doctor_line(command: click.Command | None, doctor: click.Command, arguments: Sequence[str]) -> str:
    """Return the doctor's command line with what a command was called with, as far as the doctor takes it."""
    if command is None or not any(parameter.name == "where" for parameter in command.params):
        return _DOCTOR
    with command.make_context(command.name, [*arguments], resilient_parsing=True) as context:
        return doctor_line_of(context, doctor)


def doctor_line_of(context: click.Context, doctor: click.Command) -> str:
    """Return the doctor's command line with what the running command was called with; what it writes is left out."""
    return line_of(context, "doctor", doctor)


def line_of(context: click.Context, name: str, command: click.Command) -> str:
    """Return a command's line with what the running one was called with, as far as it takes that."""
    given = {
        parameter: value
        for parameter, value in context.params.items()
        if parameter not in {"write_map", "as_json"}
        and context.get_parameter_source(parameter) is click.core.ParameterSource.COMMANDLINE
    }
    place = shlex.quote(str(given.pop("where", "…")))
    words = options_of(command)
    options = (words(_KEYWORDS.get(parameter, parameter), value) for parameter, value in given.items())
    return " ".join([f"shardload {name}", place, *(text for text in options if text)])


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
        entries = {old: [new] if isinstance(new, str) else new or [] for old, new in value.items()}
        if any("=" in old or {"=", ","} & set("".join(new)) for old, new in entries.items()):
            return None  # OLD=NEW can't say it
        value = [f"{old}={','.join(new)}" for old, new in entries.items()]
    values = value if isinstance(value, (list, tuple)) else [value]
    return " ".join(f"{name} {shlex.quote(str(one))}" for one in values)
