"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shardload.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardload.keymap import KeyMap, Rule
    from shardload.keywords import TrustKeywords, WhereKeywords
    from shardload.where import Trust

Command = TypeVar("Command", bound="Callable[..., Any]")

json_option = click.option("--json", "as_json", is_flag=True, help="Write one JSON document to stdout.")


def source_options(function: Command) -> Command:
    """Add the options that choose files of WHERE and say how to reach them."""
    for option in (
        click.option("--cache-dir", metavar="FOLDER", help="Where files of the Hub are kept."),
        click.option("--offline", is_flag=True, help="Use only what the Hub's cache holds."),
        click.option(
            "--storage-option",
            "storage_options",
            multiple=True,
            metavar="NAME=VALUE",
            help="How to reach s3://, gs://, az:// or https://; secrets belong into the environment.",
        ),
        click.option(
            "--no-disk", is_flag=True, help="Read weights of the Hub into memory, and keep no file of it."
        ),
        click.option("--allow-links", is_flag=True, help="Follow links that lead out of the folder."),
        click.option("--variant", metavar="NAME", help="Weights of a variant: model.NAME.safetensors."),
        click.option(
            "--state-dict", metavar="NAME", help="Which state dict of a training checkpoint: ema, …"
        ),
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


code_revision_option = click.option(
    "--code-revision", metavar="COMMIT", help="Commit of the code, where another repo holds it."
)


def trust_options(function: Command) -> Command:
    """Add the options by which the caller allows a repo's code to run."""
    for option in (
        click.option(
            "--remote-base",
            type=click.Choice(["auto", "shim", "parts", "transformers"]),
            default="auto",
            help="Who serves that code's imports of transformers: shardload's stand-in, alone or with parts of the "
            "installed one, or that one as a whole.",
        ),
        code_revision_option,
        lock_option,
        click.option(
            "--locked", is_flag=True, help="Run the code that the lock file approves, and no other."
        ),
        click.option("--trust-remote-code", is_flag=True, help="Run the Python code that the repo carries."),
    ):
        function = option(function)
    return function


def key_map_options(function: Command) -> Command:
    """Add the options that rename or remake tensors: a map's file, or single renames."""
    for option in (
        click.option(
            "--map", "map_file", metavar="FILE", help="Key map: JSON, as shardload doctor writes it."
        ),
        click.option(
            "--key-map",
            multiple=True,
            metavar="OLD=NEW",
            help="Rename keys: {} is a number, {...} any run of segments. OLD= drops the keys that match, and "
            "OLD=OLD,NEW gives them a second name.",
        ),
    ):
        function = option(function)
    return function


def leniency_options(function: Command) -> Command:
    """Add the options that name keys in which checkpoint and model may differ."""
    for option in (
        click.option(
            "--allow-unexpected",
            multiple=True,
            metavar="PATTERN",
            help="Keys that may be left over (head: of an old head).",
        ),
        click.option(
            "--allow-missing",
            multiple=True,
            metavar="PATTERN",
            help="Keys that may be missing (head: of a new head).",
        ),
    ):
        function = option(function)
    return function


def class_options(function: Command) -> Command:
    """Add the options that name the model's class."""
    for option in (
        click.option("--model-class", metavar="MODULE:CLASS", help="Your own class, which takes the config."),
        click.option(
            "--auto-class", metavar="NAME", help="Entry of the config's auto_map, such as AutoModel."
        ),
    ):
        function = option(function)
    return function


def quantise_options(function: Command) -> Command:
    """Add the options that quantise a model while it is loaded."""
    for option in (
        click.option(
            "--load-in-4bit", is_flag=True, help="The same to 4 bits, fp4 in blocks of 64 with a scale each."
        ),
        click.option(
            "--load-in-8bit",
            is_flag=True,
            help="Quantise Linears to int8 by bitsandbytes while they are read.",
        ),
    ):
        function = option(function)
    return function


def device_map_options(function: Command) -> Command:
    """Add the options that lay a model over several devices."""
    for option in (
        click.option(
            "--max-memory",
            type=_Pairs("max_memory"),
            metavar="DEVICE=SIZE,…",
            help="What each device may hold: 0=20GiB,cpu=60GiB. The others hold nothing, but for the disk.",
        ),
        click.option(
            "--device-map",
            type=_Pairs("device_map"),
            metavar="MAP",
            help="Lay blocks over devices: auto, balanced, sequential, a device, or NAME=DEVICE,…",
        ),
    ):
        function = option(function)
    return function


class _Pairs(click.ParamType):  # type: ignore[type-arg]  # it has an argument since click 8.2
    """NAME=VALUE,NAME=VALUE as a dict; a text without a sign = as it is, where that is a map of devices."""

    name = "pairs"

    def __init__(self, keyword: str) -> None:
        self.keyword = keyword

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a dict, or the text of a map that has no names."""
        if not isinstance(value, str) or (self.keyword == "device_map" and "=" not in value):
            return value
        pairs = [entry.rpartition("=") for entry in value.split(",")]
        if any(not sign or not given for _, sign, given in pairs):
            self.fail(f"{value!r} is not NAME=VALUE,NAME=VALUE", param, ctx)
        return {name: given for name, _, given in pairs}


def trust_keywords(options: dict[str, Any]) -> TrustKeywords:
    """Take the trust options out of a command's options and return them as keywords. Raises UsageError."""
    trusted, locked, lock = (options.pop(name) for name in ("trust_remote_code", "locked", "lock"))
    if trusted and (locked or lock):
        raise UsageError(
            "--trust-remote-code runs what the lock file does not approve",
            cure="pass it, or --locked, not both",
        )
    allowed: Trust = "locked" if locked else bool(trusted)
    return {
        "trust_remote_code": allowed if lock is None else Path(lock),
        "code_revision": options.pop("code_revision"),
        "remote_base": options.pop("remote_base"),
    }


def source_keywords(options: dict[str, Any]) -> WhereKeywords:
    """Take the source options out of a command's options and return them as `open_checkpoint`'s keywords."""
    return {
        "revision": options.pop("revision"),
        "cache_dir": options.pop("cache_dir"),
        "local_files_only": options.pop("offline"),
        "subfolder": options.pop("subfolder"),
        "variant": options.pop("variant"),
        "state_dict": options.pop("state_dict"),
        "allow_links": options.pop("allow_links"),
        "storage_options": storage_options(options.pop("storage_options")),
        "disk": not options.pop("no_disk"),
    }


def storage_options(entries: Sequence[str]) -> dict[str, Any] | None:
    """Return `NAME=VALUE` entries as a mapping, with true and false as truth values; None without any."""
    found: dict[str, Any] = {}
    for entry in entries:
        name, sign, value = entry.partition("=")
        if not name or not sign:
            raise UsageError(
                f"{name!r} sets nothing", where="--storage-option", cure="write it as NAME=VALUE"
            )
        found[name] = {"true": True, "false": False}.get(value.lower(), value)
    return found or None


def key_map_of(options: dict[str, Any]) -> KeyMap:
    """Take the key map's options out of a command's options and return the map. Raises UsageError for both together."""
    from shardload.keymap import KeyMap

    map_file, entries = options.pop("map_file"), options.pop("key_map")
    if map_file is None:
        return renames(entries)
    if entries:
        raise UsageError("--map and --key-map can't be combined", cure="put all rules into the map's file")
    return KeyMap.read(map_file)


def renames(entries: Sequence[str]) -> KeyMap:
    """Return `OLD=NEW` entries as a KeyMap, in their order. Raises UsageError for other texts.

    `OLD=` drops, and `OLD=NEW,ALSO` gives one tensor several names.
    """
    from shardload.keymap import KeyMap

    rules: list[Rule] = []
    for entry in entries:
        old, sign, new = entry.partition("=")
        if not old or not sign:
            raise UsageError(f"{entry!r} renames nothing", where="--key-map", cure="write it as OLD=NEW")
        if "=" in new:
            raise UsageError(
                f"{entry!r} has several signs =, any of which may end the old name",
                where="--key-map",
                cure="write the rule in a key map's file: --map FILE",
            )
        rules += KeyMap.of({old: new.split(",") if new else None}).rules
    return KeyMap(tuple(rules))
