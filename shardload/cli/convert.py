"""`shardload convert`: write a checkpoint as safetensors, or as a distributed checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from shardload.cli import output
from shardload.cli.options import json_option, key_map_of, key_map_options, source_keywords, source_options

if TYPE_CHECKING:
    from shardload.writing import Written

EXAMPLES = """\b
Examples:
  shardload convert ./chatglm2-6b -o ./chatglm2-6b-safetensors
  shardload convert ./model -o ./small-shards --max-shard-size 2GB
  shardload convert ./mixtral -o ./fused --map map.json --dtype bfloat16
  shardload convert ./step-1000 -o ./model                 # a folder of torch.distributed.checkpoint
  shardload convert ./model -o ./distributed --format dcp
"""

SCHEMA = "shardload.convert/1"


@click.command(
    "convert", epilog=EXAMPLES, short_help="Write a checkpoint as safetensors: cast, split, renamed."
)
@click.argument("where")
@click.option("-o", "--out", required=True, metavar="FOLDER", help="New or empty folder to write into.")
@key_map_options
@click.option(
    "--dtype", default="auto", metavar="DTYPE", help="Cast floating weights; auto keeps what is stored."
)
@click.option("--max-shard-size", default="5GB", show_default=True, metavar="SIZE", help="Largest shard.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["safetensors", "dcp"]),
    default="safetensors",
    help="safetensors, or dcp: what torch.distributed.checkpoint loads.",
)
@click.option("--no-verify", is_flag=True, help="Do not read the new files back.")
@source_options
@json_option
def command(
    where: str,
    out: str,
    dtype: str,
    max_shard_size: str,
    file_format: Literal["safetensors", "dcp"],
    no_verify: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the checkpoint WHERE into a new folder: shards, an index, and the files beside them.

    Tensors are streamed. Files appear in the folder when all are complete; a run that was stopped goes on where it
    stopped when the same command is given again.
    """
    from shardload.cli.kept_names import kept_names
    from shardload.writing.convert import convert

    source = source_keywords(options)
    key_map = key_map_of(options)
    kept, note = kept_names(where, dtype, key_map, source)
    written = convert(
        where,
        out,
        key_map=key_map,
        dtype=dtype,
        max_shard_size=max_shard_size,
        verify=not no_verify,
        progress=False if as_json else None,
        float32=kept,
        format=file_format,
        **source,
    )
    if as_json:
        output.say_json({"schema": SCHEMA, **written.to_dict()})
    else:
        output.say("\n".join(written_lines(written)))
        if note:
            output.tell(f"note: {note}")


def written_lines(written: Written) -> list[str]:
    """Return the list of written files as text."""
    sizes = [(output.escape(str(path)), output.size_of(path.stat().st_size)) for path in written.files]
    lines = output.columns([("file", "size"), *sizes], right=(1,), indent="  ")
    lines[0] = output.paint(lines[0], dim=True)
    moved = ", ".join(f"{output.size_of(nbytes)} {kind}" for kind, nbytes in written.nbytes.items())
    checked = "read back and compared" if written.verified else "not read back"
    rate = (
        f" ({sum(written.nbytes.values()) / written.seconds / 1e9:.2f} GB/s)" if written.seconds > 1 else ""
    )
    lines.append(f"  {moved or 'nothing'} in {written.seconds:.2f} s{rate}, {checked}")
    if written.resumed:
        lines.append(f"  {len(written.resumed)} files were complete from an earlier run")
    return lines
