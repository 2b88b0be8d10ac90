"""The command line. Each command has a file.

Data goes to stdout, messages and progress to stderr. Exit codes: 0 ok, 1 checkpoint and model (or two checkpoints)
disagree or a repo's code failed, 2 usage or I/O, 3 curable by a key map, 4 unsafe or corrupt, 70 a defect of
shardload, 130 interrupted, 141 the reader of stdout has gone.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from importlib.metadata import version
from typing import TYPE_CHECKING

import click
from click.shell_completion import shell_complete

from shardload._system.absent_numpy import without_numpy_warning
from shardload.cli import output
from shardload.cli.group import Group
from shardload.cli.wording import doctor_line, options_of, worded
from shardload.errors import RemoteCodeError, ShardloadError, UsageError, keywords_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.errors.wording import Words

COMMANDS = (
    "chat",
    "convert",
    "demo",
    "diff",
    "doctor",
    "inspect",
    "load",
    "map",
    "merge",
    "plan",
    "trust",
    "verify",
)
INTERRUPTED = 130
READER_GONE = 141
DEFECT = 70
COMPLETE = "_SHARDLOAD_COMPLETE"
"""The variable in which a shell asks for its completion script, or for completions."""


class _Commands(Group):
    """Imports the file of a command when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"shardload.cli.{cmd_name}").command
        return command


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        output.say(f"shardload {version('shardload')}")
        ctx.exit()


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: shardload demo",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
def commands() -> None:
    """Load sharded PyTorch checkpoints: planned from headers, mapped instead of copied, strict."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with `arguments` (by default the process's own) and exit the process.

    Where a shell asks for completions, they are the answer.
    """
    asked = os.environ.get(COMPLETE)
    if asked:
        sys.exit(shell_complete(commands, {}, "shardload", COMPLETE, asked))
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


@without_numpy_warning()
def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; errors are shown, not raised."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # tests and notebooks replace the streams
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    as_json = "--json" in arguments
    try:
        # Not `commands.main()`: that one answers an interrupt and a closed pipe with exit code 1.
        with commands.make_context("shardload", list(arguments)) as context:
            return int(commands.invoke(context) or 0)
    except click.exceptions.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return READER_GONE
    except (ShardloadError, click.ClickException, OSError, SystemExit) as error:
        return _fail(error, arguments, as_json=as_json)
    except Exception as error:  # noqa: BLE001 - a defect: Python's own exit code 1 means a mismatch here
        traceback.print_exc()
        if as_json:
            output.say_json(
                {"error": {"kind": type(error).__name__, "what": str(error), "exit_code": DEFECT}}
            )
        return DEFECT


def words_of(arguments: Sequence[str]) -> Words:
    """Return the words of the command that the arguments name: the group has no option of its own that takes a value.

    A text that is to be typed has the arguments of the command in it.
    """
    place = next((place for place, text in enumerate(arguments) if not text.startswith("-")), len(arguments))
    name, given = "".join(arguments[place : place + 1]), arguments[place + 1 :]
    context = click.Context(commands)
    command, doctor = (commands.get_command(context, each) for each in (name, "doctor"))
    assert doctor is not None
    return options_of(command, doctor_line(command, doctor, given))


def _fail(
    cause: ShardloadError | click.ClickException | OSError | SystemExit,
    arguments: Sequence[str],
    *,
    as_json: bool,
) -> int:
    """Show an error in the command's words, on stdout when it is asked for as JSON, and return its exit code."""
    error = _as_own(cause)
    words = words_of(arguments)
    if as_json:
        named = [words(name, value) for name, value in keywords_of(error.cure).items()]
        options = [option for option in named if option is not None]
        document = {"error": {**error.to_dict(), "options": options, "exit_code": error.exit_code}}
        report = getattr(error, "report", None)
        if report is not None:
            document["report"] = report.to_dict()
        output.say_json(worded(document, words))
    else:
        output.complain(error.said(words))
    return error.exit_code


def _as_own(error: ShardloadError | click.ClickException | OSError | SystemExit) -> ShardloadError:
    if isinstance(error, ShardloadError):
        return error
    if isinstance(
        error, SystemExit
    ):  # click has its own exceptions to exit: this is a `sys.exit()` of the model's code
        return RemoteCodeError(f"the model's code ended the program: SystemExit: {error}")
    if isinstance(error, OSError):
        return UsageError(error.strerror or str(error), where=str(error.filename) if error.filename else None)
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "shardload"
    return UsageError(error.format_message(), cure=f"see {path} --help")


def _silence_stdout() -> None:
    """Point stdout at /dev/null: Python flushes it at exit, and a closed pipe would be an error there."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
