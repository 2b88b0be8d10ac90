"""`shardload verify`: compare a checkpoint's files with known hashes, and look at their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from shardload.cli import output
from shardload.cli.options import json_option, source_keywords, source_options
from shardload.cli.wording import options_of, worded
from shardload.errors import CorruptError, said

if TYPE_CHECKING:
    from shardload.compare.verify import Verification

EXAMPLES = """\b
Examples:
  shardload verify THUDM/chatglm2-6b            the files in the cache, against the Hub's listing
  shardload verify ./chatglm2-6b                against its SHA256SUMS file, or the Hub cache's own names
  shardload verify ./chatglm2-6b --sums CHECKED.txt --values
"""
_SHOWN = 40


@click.command("verify", epilog=EXAMPLES, short_help="Verify a checkpoint's bytes against known hashes.")
@click.argument("where")
@click.option(
    "--sums",
    type=click.Path(dir_okay=False),
    help="A file of SHA-256 sums and names; by default SHA256SUMS in WHERE.",
)
@click.option("--values", is_flag=True, help="Look at every number: NaN, Inf, matrices and tails of zeros.")
@source_options
@json_option
def command(where: str, sums: str | None, values: bool, as_json: bool, **options: Any) -> None:
    """Verify the structure of the checkpoint in WHERE, then every byte of its files against known hashes.

    WHERE is a folder, a checkpoint file, or org/name[@revision] on the Hub, of which the files in the cache are read.
    Exit codes: 0 every weight file was verified; 1 the hash of a weight file is not known, or a value is odd; 4 bytes
    differ or the structure is broken.
    """
    from shardload.compare.verify import verify

    progress = False if as_json else None
    keywords = source_keywords(options)
    try:
        report = verify(where, sums=sums, values=values, progress=progress, **keywords)
    except CorruptError as error:
        if error.report is not None and not as_json:
            output.say("\n".join(_lines(error.report)))
        raise
    words = options_of(command)
    if as_json:
        output.say_json(worded(report.to_dict(), words))
    else:
        output.say("\n".join(_lines(report)))
        if report.cure:
            output.say(output.escape(f"  cure:  {said(report.cure, words)}"))
    if not report.ok:
        raise click.exceptions.Exit(1)


def _lines(report: Verification) -> list[str]:
    lines = [output.paint(output.escape(report.where), bold=True), f"  structure  {report.structure}", ""]
    rows = [("file", "size", "bytes are", "compared with")]
    rows += [
        (output.escape(file.name), output.size_of(file.size), _said(file.status), ", ".join(file.by))
        for file in report.files
    ]
    table = output.columns(rows, right=(1,), indent="  ")
    lines += [output.paint(table[0], dim=True), *table[1:]]
    if report.values:
        lines += ["", *_value_lines(report)]
    elif report.screened:
        lines += ["", "  values     no NaN, no Inf, no matrix or tail of zeros"]
    lines += ["", f"  {_verdict(report)}"]
    return lines


def _said(status: str) -> str:
    return {
        "ok": "right",
        "changed": "CHANGED",
        "unknown": "of unknown hash",
        "absent": "not here",
    }[status]


def _value_lines(report: Verification) -> list[str]:
    rows = [("odd values", "in", "", "shard")]
    for finding in report.values[:_SHOWN]:
        unit = " bytes" if finding.kind == "zero tail" else ""
        count = f"{finding.count:,} of {finding.numel:,}{unit}"
        rows.append((finding.kind, output.escape(finding.tensor), count, output.escape(finding.shard)))
    table = output.columns(rows, indent="  ")
    more = [f"  and {len(report.values) - _SHOWN:,} more"] if len(report.values) > _SHOWN else []
    return [output.paint(table[0], dim=True), *table[1:], *more]


def _verdict(report: Verification) -> str:
    rate = report.nbytes / report.seconds / 1e9 if report.seconds else 0
    took = f"hashed {output.size_of(report.nbytes)} in {report.seconds:.2f} s, {rate:.1f} GB/s"
    if any(file.status == "changed" for file in report.files):
        return f"changed ({took})"
    if report.unverified:
        count = len(report.unverified)
        return f"not verified: the hashes of {count} weight files are not known ({took})"
    return f"every weight file has its known hash ({took})"
