"""`shardload plan`: what a load would download, read, hold and peak at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from shardload.cli import output
from shardload.cli.options import (
    class_options,
    device_map_options,
    json_option,
    key_map_of,
    key_map_options,
    quantise_options,
    source_keywords,
    source_options,
    trust_keywords,
    trust_options,
)
from shardload.cli.view import device_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.forecast import Amounts, Forecast
    from shardload.keywords import WhereKeywords
    from shardload.loading.rank_amounts import RankAmounts
    from shardload.model.shell import Shell

EXAMPLES = """\b
Examples:
  shardload plan ./chatglm2-6b
  shardload plan org/name --revision COMMIT --dtype float32
  shardload plan ./llama --fsdp 8 --tp 4
  shardload plan ./llama --load-in-8bit
  shardload plan ./llama --device-map auto --max-memory 0=20GiB,cpu=60GiB
  shardload plan ./mixtral --map map.json --device cuda --adapter ./my-lora
"""

DOES_NOT_FIT = 1


@click.command("plan", epilog=EXAMPLES, short_help="Show what a load would download, read, hold and peak at.")
@click.argument("where")
@click.option(
    "--dtype",
    default="auto",
    metavar="DTYPE",
    help="Cast floating weights; stored keeps each one's own, and so does auto but for classes of transformers.",
)
@click.option("--device", default="cpu", metavar="DEVICE", help="cpu, cuda, cuda:1, …")
@device_map_options
@key_map_options
@click.option("--adapter", metavar="WHERE", help="LoRA adapter that is attached too.")
@click.option("--fsdp", type=click.IntRange(1), default=1, metavar="N", help="Ranks that FSDP shards over.")
@click.option("--tp", type=click.IntRange(1), default=1, metavar="N", help="Ranks of tensor parallelism.")
@click.option(
    "--tp-plan",
    multiple=True,
    metavar="NAME=STYLE",
    help="What tensor parallelism cuts: 'layers.*.up=colwise' or rowwise; else the class of transformers says it.",
)
@click.option("--copy", is_flag=True, help="As for load: read the weights instead of mapping the files.")
@quantise_options
@trust_options
@class_options
@source_options
@json_option
def command(where: str, as_json: bool, **options: Any) -> int:
    """Show what a load of WHERE would download, read, hold and peak at; nothing but headers is read.

    WHERE is a folder, a checkpoint file, or org/name[@revision] on the Hub, of which no weight is fetched. Exits
    with 1 where the anonymous memory would not suffice. With --fsdp or --tp also what each rank would read and hold;
    with --device-map what each device would hold, which this machine does not have to have, and 1 where it may not.
    The model is built, without memory for its weights, where it is to be quantised, or where an option names its
    class or lets its code run: then ties, joins and weights that the class keeps in float32 count too.
    """
    from shardload.forecast import plan_load

    options["tp_plan"] = _plan(options["tp_plan"])
    key_map, source = key_map_of(options), source_keywords(options)
    shell = _shell(where, source, options)
    forecast = plan_load(where, key_map=key_map, shell=shell, **source, **options)
    if as_json:
        output.say_json(forecast.to_dict())
    else:
        output.say("\n".join(forecast_lines(forecast)))
    return 0 if forecast.fits else DOES_NOT_FIT


def _shell(where: str, source: WhereKeywords, options: dict[str, Any]) -> Shell | None:
    """Take the options of the class out, and return the shell of the model where one is needed."""
    trust = trust_keywords(options)
    model_class, auto_class = options.pop("model_class"), options.pop("auto_class")
    quantised = options["load_in_8bit"] or options["load_in_4bit"]
    if not (quantised or model_class or auto_class or trust["trust_remote_code"]):
        return None
    from shardload import remote_code
    from shardload.checkpoint.checkpoint import open_checkpoint
    from shardload.checkpoint.json_file import read_config
    from shardload.cli.load import find_class
    from shardload.dtypes import parse_dtype
    from shardload.keywords import place_of, trust_of
    from shardload.model.shell import build_shell

    own = None if model_class is None else find_class(model_class)
    place = place_of(where, source)
    checkpoint = open_checkpoint(place)
    config = checkpoint.config or (read_config(checkpoint.source) if own is None else None)
    repo = checkpoint.source, config, trust_of(place, trust)
    loaded = remote_code.load_config(*repo, dtype=parse_dtype(options["dtype"]), model_class=own)
    resolved = remote_code.resolve_class(*repo, auto_class=auto_class, model_class=own)
    return build_shell(lambda: resolved.make(loaded.config))


def _plan(named: Sequence[str]) -> dict[str, str] | None:
    pairs = [name.rpartition("=") for name in named]
    if any(not name or not style for name, _, style in pairs):
        raise click.BadParameter("pass NAME=STYLE, such as 'layers.*.up=colwise'", param_hint="--tp-plan")
    return {name: style for name, _, style in pairs} or None


def forecast_lines(forecast: Forecast) -> list[str]:
    """Return a forecast as text."""
    size = output.size_of
    dtypes = ", ".join(f"{name} {size(nbytes)}" for name, nbytes in forecast.dtypes.items())
    shards = f"{forecast.shards} shard" + "s" * (forecast.shards != 1)
    rows = [
        ("tensors", f"{forecast.tensors:,} in {shards}: {dtypes}"),
        ("download", size(forecast.download) if forecast.download else "nothing"),
        ("read", size(forecast.read)),
        ("hold", _amounts(forecast.held)),
    ]
    if forecast.adapter:
        rows.append(("adapter", f"{_amounts(forecast.adapter)} more"))
    added = forecast.peak_anon - forecast.work_space
    work = f"{size(added)} anonymous, and at most {size(forecast.work_space)} to work in"
    rows.append(("peak", work + _room(forecast)))
    title = f"{forecast.where}: dtype {forecast.dtype}, device {forecast.device}"
    lines = [output.paint(output.escape(title), bold=True)]
    lines += [f"  {output.paint(label.ljust(8), dim=True)}  {output.escape(text)}" for label, text in rows]
    lines += _map_lines(forecast)
    lines += rank_lines(forecast.ranks)
    lines += device_lines(forecast.devices)
    lines += [f"  note: {output.escape(note)}" for note in forecast.notes]
    return lines


def _amounts(amounts: Amounts) -> str:
    here = f"{output.size_of(amounts.file)} file-backed, {output.size_of(amounts.anon)} anonymous"
    if not amounts.device:
        return here
    there = f"{output.size_of(amounts.device)} on the device"
    return f"{there}, {here}" if amounts.file or amounts.anon else there


def _room(forecast: Forecast) -> str:
    if not forecast.free:
        return ""
    free = f"{output.size_of(forecast.free)} may still be taken"
    return f"; {free}" if forecast.fits_in_memory else f": it does not fit, {free}"


def rank_lines(ranks: Sequence[RankAmounts]) -> list[str]:
    """Return a table of ranks; ranks of the same amounts are one line."""
    if not ranks:
        return []
    alike: dict[tuple[int, ...], list[int]] = {}
    for each in ranks:
        alike.setdefault((each.read, each.file, each.anon, each.device, each.peak), []).append(each.rank)
    rows: list[tuple[str, ...]] = [
        ("ranks", "read", "file-backed", "anonymous", "on the device", "peak anonymous")
    ]
    rows += [(_spans(own), *map(output.size_of, amounts)) for amounts, own in alike.items()]
    first, *lines = output.columns(rows, right=(1, 2, 3, 4, 5), indent="  ")
    return ["", output.paint(first, dim=True), *lines]


def _spans(numbers: Sequence[int]) -> str:
    """Return ranks in order as spans: "0-6, 8"; many spans are counted."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    shown = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans[:4])
    return shown if len(spans) <= 4 else f"{shown}, … ({len(numbers)} ranks)"


def _map_lines(forecast: Forecast) -> list[str]:
    if not forecast.rules:
        return []
    lines = ["", *rule_lines(forecast.rules)]
    joins = forecast.joins
    if joins.joined:
        lines.append(
            f"  joined: {joins.joined:,} tensors, {output.size_of(joins.nbytes)} of new memory; {joins.across:,} have "
            f"parts in several shards, of which at most {output.size_of(joins.peak)} is incomplete at one moment"
        )
    if forecast.dropped:
        lines.append(f"  dropped: {forecast.dropped:,} stored tensors")
    return lines


def rule_lines(rules: Sequence[tuple[dict[str, Any], int]]) -> list[str]:
    """Return one line per rule, with the number of names that it takes."""
    rows = [("takes", "rule of the key map")]
    rows += [(f"{count:,}", output.escape(rule_text(rule))) for rule, count in rules]
    first, *lines = output.columns(rows, right=(0,), indent="  ")
    return [output.paint(first, dim=True), *lines]


def rule_text(rule: dict[str, Any]) -> str:
    """Return a rule as one line: its name, source, target, and other fields."""
    fields = dict(rule)
    op = fields.pop("op")
    left = fields.pop("source", None) or fields.pop("sources", None) or fields.pop("pattern", "")
    right = fields.pop("target", None) or fields.pop("targets", None)
    text = f"{op} {_names(left)}" + (f" -> {_names(right)}" if right else "")
    more = ", ".join(f"{name} {value}" for name, value in fields.items())
    return f"{text} ({more})" if more else text


def _names(value: Any) -> str:
    return " + ".join(value) if isinstance(value, list) else str(value)
