"""The results of a sweep as lines, counts and a table of reasons."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from scripts.architectures.trial import Result

COUNTED = ("equal", "wrong", "refused", "crashed")
TITLES = {
    "refused": "Refused by shardload",
    "wrong": "Wrong",
    "crashed": "Crashed, or not done in time",
    "excluded": "Left out: transformers does not save and load it unchanged",
    "not built": "Left out: no tiny model could be made here",
}


def line(result: Result) -> str:
    """Return the result of one architecture in a line."""
    words = [result.model_type, result.class_name, result.outcome]
    if result.outcome == "equal":
        words.append(f"(outputs {result.outputs}, written back {result.written})")
    words.append(result.reason or result.written_reason)
    return " ".join(word for word in words if word) + f" [{result.seconds} s]"


def all_right(results: Sequence[Result]) -> bool:
    """Return whether every architecture that counts is equal, and is written back equal."""
    counted = [result for result in results if result.outcome in COUNTED]
    return all(result.outcome == "equal" and result.written == "equal" for result in counted)


def page(results: Sequence[Result]) -> str:
    """Return the counts and the grouped reasons as Markdown."""
    import torch
    import transformers

    counted = [result for result in results if result.outcome in COUNTED]
    outcomes = Counter(result.outcome for result in results)
    loaded = [result for result in counted if result.outcome in {"equal", "wrong"}]
    written = Counter(result.written for result in loaded)
    outputs = Counter(result.outputs for result in loaded)
    modes = ", ".join(sorted({result.mode for result in results}))
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    lines = [
        f"{len(counted)} architectures that transformers builds, saves and loads itself; mode {modes}; {versions}.",
        "",
        "| | architectures |",
        "|---|---|",
        *(f"| {outcome} | {outcomes[outcome]} |" for outcome in COUNTED),
        *(f"| written back: {how} | {written[how]} |" for how in ("equal", "different", "refused")),
        *(f"| outputs: {how} | {outputs[how]} |" for how in ("equal", "different", "not run")),
        *(f"| left out: {outcome} | {outcomes[outcome]} |" for outcome in ("excluded", "not built")),
    ]
    for outcome, title in TITLES.items():
        lines += _section(title, [(one, one.reason) for one in results if one.outcome == outcome])
    for how in ("different", "refused"):
        these = [(one, one.written_reason) for one in loaded if one.written == how]
        lines += _section(f"Written back: {how}", these)
    lines += _section("Notes, no faults", [(one, note) for one in loaded for note in one.notes])
    return "\n".join(lines) + "\n"


def _section(title: str, pairs: Iterable[tuple[Result, str]]) -> Iterator[str]:
    groups: dict[str, list[tuple[Result, str]]] = defaultdict(list)
    for result, reason in pairs:
        groups[_kind(result, reason)].append((result, reason))
    if not groups:
        return
    yield from ("", f"## {title}", "", "| reason | count | model types |", "|---|---|---|")
    for kind, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        reason = members[0][1] if len(members) == 1 and not kind.endswith("is not installed") else kind
        names = ", ".join(dict.fromkeys(result.model_type for result, _ in members))
        yield f"| {reason.replace('|', '¦')} | {len(members)} | {names} |"


def _kind(result: Result, reason: str) -> str:
    """Return a reason without what differs between architectures: names of tensors and classes, numbers."""
    absent = re.search(r"requires the (\w+) library|No module named '(\w+)'", reason)
    if absent:
        return f"{absent[1] or absent[2]} is not installed"
    short = reason.replace(result.class_name, "<class>") if result.class_name else reason
    short = re.sub(r", such as .*", "", short)
    short = re.sub(r"/\S+", "<path>", short)
    short = re.sub(r"\b\w+(\.\w+)+", "<name>", short)
    return re.sub(r"\d[\d,.]*", "N", short)
