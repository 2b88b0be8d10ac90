"""`shardload merge`: merge adapters into a base checkpoint on disk, without loading the model."""

from __future__ import annotations

from typing import Any

import click

from shardload.cli import output
from shardload.cli.options import json_option, source_keywords, source_options
from shardload.errors import UsageError

EXAMPLES = """\b
Examples:
  shardload merge ./base ./my-lora -o ./merged
  shardload merge ./base ./style=0.7 ./facts=0.3 -o ./merged
  shardload merge org/name ./my-lora -o ./merged --revision COMMIT --dtype float32
  shardload merge ./base ./my-lora -o ./merged --rounding stochastic --seed 7 --json
"""


@click.command("merge", epilog=EXAMPLES, short_help="Merge adapters into a checkpoint, on disk.")
@click.argument("base")
@click.argument("adapters", metavar="ADAPTER...", nargs=-1, required=True)
@click.option(
    "-o", "--output", "out", required=True, metavar="FOLDER", help="New or empty folder to write into."
)
@click.option(
    "--dtype",
    default="base",
    metavar="DTYPE",
    help="Cast all floating tensors; base keeps what is stored.",
)
@click.option(
    "--rounding",
    type=click.Choice(["nearest", "stochastic"]),
    default="nearest",
    help="How merged values are rounded: stochastic keeps small deltas on average.",
)
@click.option("--seed", type=int, default=0, metavar="N", help="Seed of stochastic rounding.")
@click.option(
    "--max-shard-size", metavar="SIZE", help="Split the tensors into new shards of this size, such as 5GB."
)
@click.option("--alpha", type=float, metavar="ALPHA", help="The scale of an adapter without a config.")
@click.option("--no-verify", is_flag=True, help="Do not read the new files back.")
@click.option("--no-link", is_flag=True, help="Copy unchanged shards instead of linking them.")
@source_options
@json_option
def command(adapters: tuple[str, ...], as_json: bool, no_verify: bool, no_link: bool, **options: Any) -> None:
    """Write BASE with every ADAPTER merged into it as a new checkpoint.

    BASE and ADAPTER are folders, files, or org/name[@revision] on the Hub. ADAPTER=WEIGHT merges it at a weight.
    The model is never loaded: row blocks are read, changed and written. The report says how much of each delta
    survived the rounding. A run that was killed is completed by the same command.
    """
    from shardload.adapters.merging import merge_to_disk

    report = merge_to_disk(
        options.pop("base"),
        [weighted(adapter) for adapter in adapters],
        options.pop("out"),
        verify=not no_verify,
        link=not no_link,
        progress=False if as_json else None,
        **source_keywords(options),
        **options,
    )
    if as_json:
        output.say_json(report.to_dict())
        return
    output.say(output.escape_lines(str(report)))


def weighted(text: str) -> tuple[str, float]:
    """Split `where=0.7` into where and weight; the weight is 1 if none is given. Raises UsageError."""
    where, sign, number = text.rpartition("=")
    if not sign:
        return text, 1.0
    try:
        return where, float(number)
    except ValueError:
        raise UsageError(
            f"{text!r} names no weight", where="ADAPTER", cure="write it as ADAPTER=0.7, or the path alone"
        ) from None
