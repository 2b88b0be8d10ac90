"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

Command = TypeVar("Command", bound="Callable[..., Any]")

json_option = click.option("--json", "as_json", is_flag=True, help="Write one JSON document to stdout.")


def source_options(function: Command) -> Command:
    """Add the options that say which files of WHERE are meant."""
    for option in (
        click.option("--cache-dir", metavar="FOLDER", help="Where files of the Hub are kept."),
        click.option("--offline", is_flag=True, help="Use only what the Hub's cache holds."),
        click.option("--variant", metavar="NAME", help="Weights of a variant: model.NAME.safetensors."),
        click.option("--subfolder", metavar="FOLDER", help="Folder inside WHERE that holds the checkpoint."),
        click.option("--revision", metavar="COMMIT", help="Commit, tag or branch of a Hub repo."),
    ):
        function = option(function)
    return function


def source_keywords(options: dict[str, Any]) -> dict[str, Any]:
    """Take the source options out of a command's options and return them as `open_checkpoint`'s keywords."""
    names = {"revision": "revision", "subfolder": "subfolder", "variant": "variant", "cache_dir": "cache_dir"}
    keywords = {keyword: options.pop(option) for option, keyword in names.items()}
    return {**keywords, "local_files_only": options.pop("offline")}
