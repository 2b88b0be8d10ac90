"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shardload.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardload.remote_code.trust import Trust

Command = TypeVar("Command", bound="Callable[..., Any]")

json_option = click.option("--json", "as_json", is_flag=True, help="Write one JSON document to stdout.")


def source_options(function: Command) -> Command:
    """Add the options that say which files of WHERE are meant."""
    for option in (
        click.option("--cache-dir", metavar="FOLDER", help="Where files of the Hub are kept."),
        click.option("--offline", is_flag=True, help="Use only what the Hub's cache holds."),
        click.option("--allow-links", is_flag=True, help="Follow links that lead out of the folder."),
        click.option("--variant", metavar="NAME", help="Weights of a variant: model.NAME.safetensors."),
        click.option("--subfolder", metavar="FOLDER", help="Folder inside WHERE that holds the checkpoint."),
        click.option("--revision", metavar="COMMIT", help="Commit, tag or branch of a Hub repo."),
    ):
        function = option(function)
    return function


lock_option = click.option(
    "--lock",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The lock file; by default $SHARDLOAD_LOCK, or shardload.lock here.",
)


def trust_options(function: Command) -> Command:
    """Add the options by which the caller allows a repo's code to run."""
    for option in (
        lock_option,
        click.option("--locked", is_flag=True, help="Run its code where the lock file approves it."),
        click.option("--trust-remote-code", is_flag=True, help="Run the Python code that the repo carries."),
    ):
        function = option(function)
    return function


def trust_word(options: dict[str, Any]) -> Trust:
    """Take the trust options out of a command's options and return them as `trust_remote_code`. Raises UsageError."""
    trusted, locked, lock = (options.pop(name) for name in ("trust_remote_code", "locked", "lock"))
    if trusted and (locked or lock):
        raise UsageError(
            "--trust-remote-code runs what the lock file does not approve",
            cure="pass it, or --locked, not both",
        )
    if lock is not None:
        return Path(lock)
    return "locked" if locked else bool(trusted)


def source_keywords(options: dict[str, Any]) -> dict[str, Any]:
    """Take the source options out of a command's options and return them as `open_checkpoint`'s keywords."""
    names = {"revision": "revision", "subfolder": "subfolder", "variant": "variant"}
    names |= {"cache_dir": "cache_dir", "allow_links": "allow_links"}
    keywords = {keyword: options.pop(option) for option, keyword in names.items()}
    return {**keywords, "local_files_only": options.pop("offline")}
