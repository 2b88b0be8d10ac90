"""`shardload trust`: show the code that loading a repo would run, and approve its bytes in a lock file."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from shardload.cli import output
from shardload.cli.options import (
    code_revision_option,
    json_option,
    lock_option,
    source_keywords,
    source_options,
)
from shardload.errors import Cures, UntrustedCodeError
from shardload.where import CodeTrust, Where

if TYPE_CHECKING:
    from pathlib import Path

    from shardload.remote_code.review import CodeReview
    from shardload.remote_code.trust_lock import TrustLock

EXAMPLES = """\b
Examples:
  shardload trust ./chatglm2-6b                 show the code, ask, write shardload.lock
  shardload trust THUDM/chatglm2-6b --yes       approve what main leads to now, without asking
  shardload trust ./chatglm2-6b --check         in CI: exit code 4 unless the lock file approves it
  shardload load ./chatglm2-6b --locked         run what was approved, and nothing else
"""
_SHOWN = 12


@click.command("trust", epilog=EXAMPLES, short_help="Show a repo's code and approve it in a lock file.")
@click.argument("where")
@click.option("--yes", is_flag=True, help="Approve without asking.")
@click.option("--check", is_flag=True, help="Approve nothing; only check whether the lock file approves it.")
@code_revision_option
@lock_option
@source_options
@json_option
def command(
    where: str,
    yes: bool,
    check: bool,
    code_revision: str | None,
    lock: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show the code that loading WHERE would run: its files, their SHA-256, what they import and reach; then ask.

    Nothing of it is run. An approval holds these very bytes: `--locked` and trust_remote_code="locked" refuse
    others, and show what changed. Code of another repo is asked for by itself. The list of what the code reaches is
    found by parsing; code that hides what it calls is not seen.
    """
    from shardload.remote_code.lock_place import require_own_project
    from shardload.remote_code.trust_lock import TrustLock, lock_path

    reviews = _reviews(Where(where, **source_keywords(options)), code_revision)
    path = lock_path(lock)
    held = TrustLock.at(path)
    if as_json:
        output.say_json(_document(reviews, held))
    elif not reviews:
        output.say("no code of its own: loading it runs nothing of the repo's")
    for review in reviews:
        if not as_json:
            output.say("\n".join(_lines(review, held)))
        if review.changes(held) == () or (as_json and not (yes or check)):
            continue
        if check and as_json:
            raise click.exceptions.Exit(UntrustedCodeError.exit_code)  # the document says it
        if check:
            raise _not_approved(review, path, _why_not(review, held))
        require_own_project(path, review.source, review.code)  # before a question that leads to nothing
        if not yes and not _ask(review):
            raise _not_approved(review, path, "it was not approved")
        held = review.approve(path)
        output.tell(f"approved {_count(review)} of {review.source.label} in {path}")


def _reviews(where: Where, code_revision: str | None) -> list[CodeReview]:
    from shardload.checkpoint.json_file import read_config
    from shardload.checkpoint.sources import find_source
    from shardload.remote_code.review import review_code

    source, _ = find_source(where)
    return review_code(source, read_config(source), CodeTrust(code_revision=code_revision, hub=where))


def _ask(review: CodeReview) -> bool:
    """Ask once, at a terminal; False without one, where nobody can answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    question = f"Allow {_count(review)} of {output.escape(review.source.label)} to run, exactly these bytes?"
    return click.confirm(question, default=False, err=True)


def _not_approved(review: CodeReview, path: Path, why: str) -> UntrustedCodeError:
    from shardload.remote_code.trust_lock import approving

    return UntrustedCodeError(
        f"the code of {review.source.label} may not run: {why}",
        where=str(path.absolute()),
        cure=Cures(
            f"read it, then run `{approving(review.source, path)}` at a terminal and answer yes",
            f"approve what you have read: {approving(review.source, path)} --yes",
        ),
    )


def _why_not(review: CodeReview, held: TrustLock) -> str:
    from shardload.remote_code.lock_place import own_approval_said

    if held.is_foreign(review.source, review.code):
        return own_approval_said(held.path)[0]
    return "the lock file does not approve it"


def _count(review: CodeReview) -> str:
    count = len(review.code.files)
    return f"{count} file" + "s" * (count != 1)


def _lines(review: CodeReview, held: TrustLock) -> list[str]:
    lines = [output.paint(output.escape(review.source.label), bold=True)]
    rows = [("file that would run", "lines", "sha256", "imports")]
    for file, contents in review.contents:
        imports = ", ".join(contents.imports)
        rows.append(
            (output.escape(file.name), f"{file.content.count(10):,}", file.sha256, output.escape(imports))
        )
    table = output.columns(rows, right=(1,), indent="  ")
    lines += [output.paint(table[0], dim=True), *table[1:], ""]
    lines += _reach_lines(review)
    changes = review.changes(held)
    if changes == ():
        lines += ["", f"  approved in {output.escape(str(held.path))}: these bytes"]
    elif changes:
        lines += ["", "  changed since it was approved:"]
        lines += [f"    {output.escape(line)}" for change in changes for line in change.lines()]
    return lines


def _reach_lines(review: CodeReview) -> list[str]:
    rows: list[tuple[str, ...]] = [("reaches", "by", "at")]
    for file, contents in review.contents:
        found: dict[tuple[str, str], list[int]] = {}
        for reach in contents.reaches:
            found.setdefault((reach.kind, reach.what), []).append(reach.line)
        for (kind, what), places in sorted(found.items()):
            at = f"{file.name}:{', '.join(map(str, places[:_SHOWN]))}" + "…" * (len(places) > _SHOWN)
            rows.append((kind, output.escape(what), output.escape(at)))
    if len(rows) == 1:
        return ["  reaches outside: nothing that parsing can see (trusted code can do anything all the same)"]
    table = output.columns(rows, indent="  ")
    return [output.paint(table[0], dim=True), *table[1:]]


def _document(reviews: list[CodeReview], held: TrustLock) -> dict[str, Any]:
    def entry(review: CodeReview) -> dict[str, Any]:
        changes = review.changes(held)
        return {
            "source": review.source.label,
            "commit": review.source.revision,
            "classes": list(review.classes),
            "approved": changes == (),
            "changes": None if changes is None else [asdict(change) for change in changes],
            "files": [
                {
                    "name": file.name,
                    "sha256": file.sha256,
                    "lines": file.content.count(10),
                    **asdict(contents),
                }
                for file, contents in review.contents
            ],
        }

    return {"lock": str(held.path), "code": [entry(review) for review in reviews]}
