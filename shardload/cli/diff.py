"""`shardload diff`: how two checkpoints differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from shardload.cli import output
from shardload.cli.options import json_option, key_map_of, key_map_options, source_keywords, source_options
from shardload.keys import group_keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.compare.diff import Difference, ValueDifference

EXAMPLES = """\b
Examples:
  shardload diff ./model ./finetuned
  shardload diff ./model ./finetuned --values
  shardload diff ./old ./new --map old-to-new.json --json
"""

DIFFERENT = 1
_MOST = 12  # patterns of a kind; the rest is counted


@click.command(
    "diff", epilog=EXAMPLES, short_help="Compare two checkpoints by their headers, or their values."
)
@click.argument("a")
@click.argument("b")
@click.option("--values", is_flag=True, help="Read the tensors too, and compare their values.")
@key_map_options
@source_options
@json_option
def command(a: str, b: str, values: bool, as_json: bool, **options: Any) -> int:
    """Compare the checkpoints A and B: keys, shapes and dtypes, from their headers alone.

    A and B are folders, checkpoint files, or org/name[@revision] on the Hub. A key map is applied to A first. Exits
    with 1 where they differ.
    """
    from shardload.compare.diff import diff

    progress = False if as_json else None
    found = diff(
        a, b, key_map=key_map_of(options), values=values, progress=progress, **source_keywords(options)
    )
    if as_json:
        output.say_json(found.to_dict())
    else:
        output.say("\n".join(difference_lines(found)))
    return 0 if found.ok else DIFFERENT


def difference_lines(found: Difference) -> list[str]:
    """Return a difference as text: keys of one side only, other shapes, other dtypes, other values."""
    lines = [
        output.paint("A", bold=True) + f"  {output.escape(found.a)}",
        output.paint("B", bold=True) + f"  {output.escape(found.b)}",
        "",
    ]
    lines += _section("only in A", {key: str(header) for key, header in found.only_a.items()})
    lines += _section("only in B", {key: str(header) for key, header in found.only_b.items()})
    for title, pairs in (("other shape", found.shapes), ("other dtype", found.dtypes)):
        lines += _section(title, {key: f"A {a}, B {b}" for key, (a, b) in pairs.items()})
    lines += _value_lines(found.values or {})
    same = f"{found.same:,} tensors have the same key, shape and dtype in both"
    if found.values is not None:
        same += (
            f"; {found.compared:,} were compared, {found.compared - len(found.values):,} of them are equal"
        )
    return [*lines, same]


def _section(title: str, labels: Mapping[str, str]) -> list[str]:
    if not labels:
        return []
    groups = group_keys(labels)
    lines = [output.paint(f"{title}: {len(labels):,}", bold=True)]
    for group in groups[:_MOST]:
        count = f"  ({len(group.keys)} tensors)" if len(group.keys) > 1 else ""
        lines.append(f"  {output.escape(group.pattern)}  {group.label}{count}")
    if len(groups) > _MOST:
        rest = sum(len(group.keys) for group in groups[_MOST:])
        lines.append(f"  … and {len(groups) - _MOST} more patterns ({rest:,} tensors)")
    return [*lines, ""]


def _value_lines(values: Mapping[str, ValueDifference]) -> list[str]:
    """Return the tensors whose values differ most, the least alike first."""
    if not values:
        return []
    worst = sorted(values.items(), key=lambda item: 1.0 if item[1].cosine is None else item[1].cosine)
    rows = [("tensor", "elements differ", "max |A-B|", "cosine")]
    for key, apart in worst[:_MOST]:
        cosine = "-" if apart.cosine is None else f"{apart.cosine:.9f}"
        rows.append((output.escape(key), f"{apart.different:,}", f"{apart.max_abs:.6g}", cosine))
    lines = [output.paint(f"other values: {len(values):,}", bold=True)]
    lines += output.columns(rows, right=(1, 2, 3), indent="  ")
    if len(worst) > _MOST:
        lines.append(f"  … and {len(worst) - _MOST} more, which are more alike")
    return [*lines, ""]
