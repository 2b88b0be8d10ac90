"""`shardload doctor`: why weights and model disagree, and what cures it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shardload._system.atomic_file import write_atomically
from shardload.cli import output
from shardload.cli.options import (
    json_option,
    key_map_of,
    key_map_options,
    source_keywords,
    source_options,
    trust_keywords,
    trust_options,
)
from shardload.cli.wording import doctor_line_of, line_of, options_of, worded
from shardload.errors import OfReport, UsageError, said

if TYPE_CHECKING:
    from shardload.diagnosis.examination import Examination

EXAMPLES = """\b
Examples:
  shardload doctor ./weights.pth --model mypackage.model:MyModel
  shardload doctor ./weights.pth --model mypackage.model:MyModel --write-map map.json
  shardload doctor ./old-checkpoint --like ./new-checkpoint
  shardload doctor ./chatglm2-6b --trust-remote-code
  shardload doctor ./base-model --trust-remote-code --adapter ./my-lora
"""


@click.command("doctor", epilog=EXAMPLES, short_help="Say why weights and model disagree, and the cure.")
@click.argument("where")
@click.option(
    "--model", "--model-class", "model", metavar="MODULE:CLASS", help="Class that takes the config."
)
@click.option("--like", metavar="OTHER", help="A checkpoint whose keys and shapes are wanted.")
@click.option("--adapter", metavar="WHERE", help="Judge this adapter on the model instead of the checkpoint.")
@click.option(
    "--write-map",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the map that cures it, for `load --map`.",
)
@trust_options
@click.option("--auto-class", metavar="NAME", help="Entry of the config's auto_map, such as AutoModel.")
@key_map_options
@source_options
@json_option
def command(
    where: str,
    model: str | None,
    like: str | None,
    adapter: str | None,
    write_map: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Say why a checkpoint and a model disagree, and what cures it. Only headers are read.

    WHERE is a folder, a checkpoint file, or org/name[@revision] on the Hub. It is compared with the class of
    --model, with the keys of --like, or with the repo's own class. Exit code: 0 clean, 1 findings, 2 usage or I/O,
    3 findings that the map cures, 4 unsafe or corrupt.
    """
    from shardload.cli.load import command as load
    from shardload.cli.load import find_class
    from shardload.doctor import examine

    if like is not None and (model is not None or adapter is not None):
        raise UsageError(
            "--like takes the place of a model", cure="pass --like, or --model (with --adapter), not both"
        )
    own_map = key_map_of(options)
    found = examine(
        where,
        model_class=None if model is None else find_class(model, "--model"),
        like=like,
        adapter=adapter,
        key_map=own_map if own_map.rules else None,
        **trust_keywords(options),
        **source_keywords(options),
        **options,
    )
    written = write_map if write_map is not None and _write(found, write_map) else None
    if written is not None and found.leniency is not None:
        # The load that takes what was written; a map of one's own is in it.
        context = click.get_current_context()
        context.params.pop("map_file"), context.params.pop("key_map")
        beside = {"key_map": str(written), **found.leniency}
        texts = (options_of(load)(*each) for each in beside.items())
        output.tell(f"to load it: {' '.join([line_of(context, 'load', load), *filter(None, texts)])}")
    # A cure may be for the load.
    line = doctor_line_of(click.get_current_context(), command)
    own, of_load = options_of(command, line), options_of(load, line)

    def words(name: str, value: Any) -> str | None:
        if written is not None and isinstance(value, OfReport):
            value = str(written)  # it is there: no line has to write it
        return own(name, value) or of_load(name, value)

    if as_json:
        output.say_json(worded(found.to_dict(), words))
        return found.exit_code
    output.say("\n".join(output.escape(said(line, words)) for line in found.lines()))
    for note in found.notes[:4]:
        output.tell(f"note: {said(note, words)}")
    return found.exit_code


def _write(found: Examination, path: Path) -> bool:
    if found.key_map is None:
        cured = "nothing to cure" if found.against else "nothing was compared"
        output.tell(f"no map was written: {'no map cures this' if found.findings else cured}")
        return False
    write_atomically(path, f"{found.key_map.to_json()}\n".encode())
    output.tell(f"wrote {path}")
    return True
