"""`shardload map`: try a key map on a checkpoint, and invert it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shardload._system.atomic_file import write_atomically
from shardload.cli import output
from shardload.cli.group import Group
from shardload.cli.options import json_option, source_keywords, source_options
from shardload.cli.plan import rule_lines
from shardload.keymap import KeyMap, as_view, leaves
from shardload.keys import group_keys
from shardload.tensor_ref import TORCH_NAMES

if TYPE_CHECKING:
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.keymap import MappedHeaders

EXAMPLES = """\b
Examples:
  shardload map apply map.json ./checkpoint
  shardload map apply map.json ./checkpoint -o bound.json
  shardload map invert bound.json -o back.json
"""

SCHEMA = "shardload.map/1"
_MOST = 30  # lines of tensors; the rest is counted


@click.group(
    "map", cls=Group, epilog=EXAMPLES, short_help="Try a key map on a checkpoint's headers, or invert it."
)
def command() -> None:
    """Try a key map on a checkpoint's headers (apply), or invert it (invert).

    To write the tensors that a map makes, use shardload convert --map; to load through it, shardload load --map.
    """


@command.command("apply", epilog=EXAMPLES, short_help="Show what a map makes of a checkpoint; bind it.")
@click.argument("map_file", metavar="MAP")
@click.argument("where")
@click.option("-o", "--out", metavar="FILE", help="Write the map as it is bound to this checkpoint.")
@source_options
@json_option
def apply(map_file: str, where: str, out: str | None, as_json: bool, **options: Any) -> None:
    """Show what the key map MAP makes of the tensors of WHERE: names, shapes, memory. No weight is read.

    With -o the map is written with the fingerprints of the keys before and after, the sizes that its inverse
    needs, and the keys that no rule takes.
    """
    from shardload.checkpoint.checkpoint import open_checkpoint

    key_map = KeyMap.read(map_file)
    checkpoint = open_checkpoint(where, **source_keywords(options))
    mapped = key_map.map_headers(checkpoint.tensors)
    key_map.require_fit(checkpoint.tensors, mapped)
    bound = key_map
    if key_map.source is None:
        said = {"unproven": key_map.unproven, "confidence": key_map.confidence}
        bound = key_map.bind(checkpoint.tensors, **said)  # type: ignore[arg-type]
    if out is not None:
        write_atomically(Path(out), bound.to_json().encode() + b"\n")
    if as_json:
        output.say_json(_document(checkpoint, bound, mapped))
    else:
        output.say("\n".join(_lines(checkpoint, bound, mapped)))
    if out is not None:
        output.tell(f"written: {out}")


@command.command("invert", epilog=EXAMPLES, short_help="Invert a map.")
@click.argument("map_file", metavar="MAP")
@click.option("-o", "--out", metavar="FILE", help="Write the inverse here instead of to stdout.")
@click.option("--json", "as_json", is_flag=True, hidden=True)
def invert(map_file: str, out: str | None, as_json: bool) -> None:  # noqa: ARG001 - its output is JSON anyway
    """Invert the key map MAP: from the model's tensors to the checkpoint's.

    A drop and a slice of rows can't be undone; a cat and a pad_rows only where the map says what they were made
    of, as it does after shardload map apply MAP WHERE -o.
    """
    text = KeyMap.read(map_file).invert().to_json()
    if out is None:
        output.say(text)
        return
    write_atomically(Path(out), text.encode() + b"\n")
    output.tell(f"written: {out}")


def _labels(mapped: MappedHeaders) -> dict[str, str]:
    """Return each new name with its shape, its dtype, and the number of stored tensors that it is joined from."""
    labels = {}
    for name, tensor in mapped.tensors.items():
        dtype = TORCH_NAMES.get(tensor.dtype, tensor.dtype)
        shape = ", ".join(map(str, tensor.shape))
        parts = 1 if as_view(tensor) else len({ref.name for ref in leaves(tensor)})
        origin = "" if parts == 1 else f"  joined from {parts}"
        labels[name] = f"[{shape}] {dtype}{origin}"
    return labels


def _lines(checkpoint: Checkpoint, bound: KeyMap, mapped: MappedHeaders) -> list[str]:
    lines = [output.paint(output.escape(checkpoint.label), bold=True)]
    lines += rule_lines(
        [(rule.to_dict(), count) for rule, count in zip(bound.rules, mapped.claimed, strict=True)]
    )
    lines += ["", f"  {len(checkpoint.tensors):,} stored tensors become {len(mapped.tensors):,}"]
    groups = group_keys(_labels(mapped))
    lines += [f"    {output.escape(group.pattern)}  {group.label}" for group in groups[:_MOST]]
    if len(groups) > _MOST:
        rest = sum(len(group.keys) for group in groups[_MOST:])
        lines.append(f"    … and {len(groups) - _MOST} more patterns ({rest:,} tensors)")
    for title, keys in (("dropped", mapped.dropped), ("taken by no rule", mapped.unchanged)):
        if keys:
            patterns = [group.pattern for group in group_keys(dict.fromkeys(keys))]
            shown = ", ".join(map(output.escape, patterns[:8]))
            more = f" and {len(patterns) - 8} more patterns" if len(patterns) > 8 else ""
            lines.append(f"  {title}: {len(keys):,} ({shown}{more})")
    if bound.resident_bytes:
        lines.append(
            f"  begun and not complete at one moment: at most {output.size_of(bound.resident_bytes)}"
        )
    return lines


def _document(checkpoint: Checkpoint, bound: KeyMap, mapped: MappedHeaders) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "where": checkpoint.label,
        "rules": [
            {**rule.to_dict(), "takes": count}
            for rule, count in zip(bound.rules, mapped.claimed, strict=True)
        ],
        "tensors": {
            name: {
                "shape": list(tensor.shape),
                "dtype": TORCH_NAMES.get(tensor.dtype, tensor.dtype),
                "from": list(dict.fromkeys(ref.name for ref in leaves(tensor))),
            }
            for name, tensor in mapped.tensors.items()
        },
        "dropped": list(mapped.dropped),
        "unchanged": list(mapped.unchanged),
        "resident_bytes": bound.resident_bytes,
    }
