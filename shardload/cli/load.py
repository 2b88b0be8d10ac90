"""`shardload load`: load a checkpoint and show how it went."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

import click

from shardload.cli import output, over_ranks
from shardload.cli.options import (
    class_options,
    device_map_options,
    json_option,
    key_map_of,
    key_map_options,
    leniency_options,
    quantise_options,
    source_keywords,
    source_options,
    trust_keywords,
    trust_options,
)
from shardload.errors import RemoteCodeError, ShardloadError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLES = """\b
Examples:
  shardload load ./chatglm2-6b --trust-remote-code
  shardload load ./chatglm2-6b --trust-remote-code --adapter ./my-lora
  shardload load org/name --revision COMMIT --trust-remote-code --dtype bfloat16
  shardload load ./weights.pth --model-class mypackage.model:MyModel --allow-missing 'head.*'
  shardload load ./weights.pth --model-class mypackage.model:MyModel --key-map 'module.{...}={...}'
  shardload load ./chatglm2-6b --trust-remote-code --map map.json
  shardload load ./llama --load-in-8bit
  torchrun --nproc-per-node 8 -m shardload load ./llama
"""


@click.command("load", epilog=EXAMPLES, short_help="Load a checkpoint and show how it went.")
@click.argument("where")
@click.option("--adapter", metavar="WHERE", help="LoRA adapter to attach.")
@click.option("--merge", is_flag=True, help="Merge the adapter into the weights while they are loaded.")
@click.option("--prefix", metavar="WHERE", help="Prefix of P-Tuning v2 for the model's prefix_encoder.")
@click.option(
    "--dtype",
    default="auto",
    metavar="DTYPE",
    help="Cast floating weights; stored keeps each one's own, and so does auto but for classes of transformers.",
)
@click.option("--device", default="cpu", metavar="DEVICE", help="cpu, cuda, cuda:1, …")
@device_map_options
@trust_options
@class_options
@quantise_options
@leniency_options
@click.option("--verify", is_flag=True, help="Hash the weight files during the load; refuse changed bytes.")
@key_map_options
@click.option("--copy", is_flag=True, help="Read the weights into memory instead of mapping the files.")
@source_options
@json_option
def command(where: str, model_class: str | None, as_json: bool, **options: Any) -> None:
    """Load a checkpoint into its model, and show what was loaded from where and what it cost.

    WHERE is a folder, a checkpoint file, or org/name[@revision] on the Hub. Started by torchrun, it shards the model
    over all ranks by FSDP, and the first rank shows a table of them.
    """
    from shardload.load import from_pretrained
    from shardload.loading.provenance import report_of

    own = None if model_class is None else find_class(model_class)
    several = over_ranks.world() > 1
    if several:
        options |= over_ranks.begin()
    try:
        model = from_pretrained(
            where,
            model_class=own,
            key_map=key_map_of(options),
            progress=False if as_json or several else None,
            **trust_keywords(options),
            **source_keywords(options),
            **options,
        )
    except (ShardloadError, OSError, click.exceptions.Exit):
        raise
    except Exception as error:
        line = None if own is None else _line_of(error, own)
        if line is None:
            raise
        what = f"{model_class} failed: {type(error).__name__}: {error}"
        raise RemoteCodeError(what, where=line, cure="correct the class") from error
    report = report_of(model)
    ranks = over_ranks.gathered(report) if several else []
    if ranks is None:
        return
    if as_json:
        output.say_json({**report.to_dict(), **({"ranks": ranks} if ranks else {})})
        return
    from shardload.cli.view import report_lines

    output.say("\n".join([*report_lines(report), *(over_ranks.rank_lines(ranks) if ranks else [])]))


def _line_of(error: BaseException, own: Callable[[Any], Any]) -> str | None:
    """Return "file:line" of the innermost frame in the package of the class, or None."""
    top = str(getattr(own, "__module__", "")).partition(".")[0]
    frames = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] == top != "shardload"
    ]
    return frames[-1] if frames else None


def find_class(reference: str, option: str = "--model-class") -> Callable[[Any], Any]:
    """Return the object that `module:Class` names, also from the working folder. Raises UsageError for the option."""
    module_name, colon, path = reference.partition(":")
    if not colon or not module_name or not path:
        raise UsageError(
            f"{reference!r} names no class", where=option, cure="write it as package.module:Class"
        )
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - a script's own folder is there; a console script's is not
    where = f"{option} {reference}"
    try:
        found: Any = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise UsageError(str(error), where=where) from error
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{module_name} can't be imported: {type(error).__name__}: {error}", where=where
        ) from error
    if not callable(found):
        raise UsageError(f"{reference} can't be called with a config", where=option)
    return found  # type: ignore[no-any-return]
