"""The Report of a load as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.cli import output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload._system.process_memory import Memory
    from shardload.loading.report import Report
    from shardload.placement.device_map import DeviceRow

_BASES = {
    "shim": "shardload's own stand-in for transformers",
    "parts": "shardload's own stand-in, with parts of the installed transformers",
    "transformers": "the installed transformers",
}


_MAPPED = 100


def pairs(*rows: tuple[str, Any]) -> list[str]:
    """Return `label  value` lines of the rows that have a value."""
    shown = [(label, output.escape(str(value))) for label, value in rows if value]
    width = max((len(label) for label, _ in shown), default=0)
    return [f"  {output.paint(label.ljust(width), dim=True)}  {value}" for label, value in shown]


def heading(text: str) -> str:
    """Return a section's first line."""
    return output.paint(output.escape(text), bold=True)


def table(rows: list[tuple[str, ...]], *, totals: bool = False, plain: bool = False) -> list[str]:
    """Return a table: the first row is its header, the first column text, with `totals` the last row bold."""
    lines = output.columns(rows, right=range(1, len(rows[0])), indent="  ")
    if plain:
        return lines
    lines[0] = output.paint(lines[0], dim=True)
    if totals:
        lines[-1] = output.paint(lines[-1], bold=True)
    return lines


def report_lines(report: Report) -> list[str]:
    """Return where everything came from, one row per shard, the adapters and the notes."""
    lines = [heading(f"{report.where}: {report.class_name}"), *origin_lines(report)]
    if report.shards:
        lines += ["", *shard_lines(report)]
    if report.memory:
        stages = {f"{name} the weights": getattr(report.memory, name) for name in ("before", "after")}
        lines += ["", *growth_lines({**stages, "peak in between": report.memory.peak})]
    if report.seconds:
        spent = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in report.seconds.items())
        lines += ["", *pairs(("time", spent))]
    lines += device_lines(report.devices)
    lines += _remarks(report)
    for adapter in report.adapters:
        lines += ["", *output.escape_lines(str(adapter)).split("\n")]
    return lines


def device_lines(devices: Sequence[DeviceRow]) -> list[str]:
    """Return a table of the devices of a map."""
    if not devices:
        return []
    size = output.size_of
    rows: list[tuple[str, ...]] = [("device", "held", "blocks", "largest", "brought to it", "may hold", "")]
    rows += [
        (
            row.device,
            size(row.nbytes),
            f"{row.blocks:,}",
            size(row.largest),
            size(row.room) if row.room else "-",
            "-" if row.limit is None else size(row.limit),
            "" if row.fits else "does not fit",
        )
        for row in devices
    ]
    return ["", *table(rows)]


def origin_lines(report: Report) -> list[str]:
    """Return where config and class came from, what served as transformers, and the format of the files."""
    return pairs(
        ("revision", report.revision),
        ("config", report.config_from),
        ("class", report.class_from),
        ("base", _BASES.get(report.remote_base or "", report.remote_base)),
        ("format", report.format),
    )


def shard_lines(report: Report) -> list[str]:
    """Return one row per shard: tensors, size, seconds, rate, and the growth of the process's memory so far."""
    before = report.memory.before if report.memory else None
    rows: list[tuple[str, ...]] = [
        ("shard", "tensors", "size", "seconds", "GB/s", "anonymous", "file-backed")
    ]
    for row in report.shards:
        gained = ("", "")
        if before:
            gained = (output.grown(row.anon_bytes - before.anon), output.grown(row.file_bytes - before.file))
        rate = _rate(row.nbytes, row.seconds)
        size = output.size_of(row.nbytes)
        rows.append((output.escape(row.name), f"{row.tensors:,}", size, f"{row.seconds:.4f}", rate, *gained))
    seconds = sum(row.seconds for row in report.shards)
    dtypes = ", ".join(f"{count:,} {name}" for name, count in report.dtypes.items())
    total = output.size_of(report.nbytes)
    rate = _rate(report.nbytes, seconds)
    rows.append((f"all: {dtypes}", f"{report.loaded:,}", total, f"{seconds:.4f}", rate, "", ""))
    return table(_fit(rows), totals=True)


def _fit(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the rows of a table, with the common beginning of the names cut so that they fit the terminal."""
    header, *body, total = rows
    names = [row[0] for row in body]
    excess = max(map(len, table(rows, plain=True))) - output.width()
    differs = (place for place, letters in enumerate(zip(*names, strict=False)) if len({*letters}) > 1)
    if not 0 < excess < next(differs, 0):
        return rows
    return [
        header,
        *(("…" + name[excess + 1 :], *row[1:]) for name, row in zip(names, body, strict=True)),
        total,
    ]


def growth_lines(stages: dict[str, Memory]) -> list[str]:
    """Return one row per stage with both kinds of memory; rows after the first show the growth."""
    rows: list[tuple[str, ...]] = [("memory of the process", "anonymous", "file-backed")]
    first = next(iter(stages.values()), None)
    for name, held in stages.items():
        if held is first:
            rows.append((name, output.size_of(held.anon), output.size_of(held.file)))
        elif first:
            rows.append((name, output.grown(held.anon - first.anon), output.grown(held.file - first.file)))
    return table(rows)


def _rate(nbytes: int, seconds: float) -> str:
    """Return GB/s. A rate beyond that of memory means that the files were mapped and nothing was moved."""
    rate = nbytes / seconds / 1e9 if seconds > 0 else 0
    return f">{_MAPPED}" if rate > _MAPPED else f"{rate:.1f}"


def _remarks(report: Report) -> list[str]:
    from shardload.keys import collapse

    lines = [f"  note: {output.escape(note)}" for note in report.notes]
    for reason, faults in report.allowed.items():
        label = f"  allowed by {output.escape(reason)}: {faults[0].kind}"
        lines += [f"{label} {output.escape(pattern)}" for pattern in collapse(fault.key for fault in faults)]
    return ["", *lines] if lines else []
