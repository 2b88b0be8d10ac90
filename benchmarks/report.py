"""Turns a run into JSON data, and JSON data into Markdown tables; the tables need nothing but the JSON."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.tables import Command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.run import Row, Run
    from benchmarks.tables import Table

SCHEMA = 1
_PEER = "transformers_loader"
_MB = 10**6
_LOADS_HEAD = (
    "| loader | start → ready | x transformers | load alone | x transformers | CPU to ready "
    "| every page touched | peak anonymous | peak resident | runs |"
)


def data_of(run: Run) -> dict[str, Any]:
    """Return a run as JSON data: the tables with every run and the medians, in bytes and seconds."""
    specs = {name: run.specs[name.rpartition(".")[0]].describe() for name in run.checkpoints}
    return {
        "schema": SCHEMA,
        "checkpoints": specs,
        "tables": [_table(table, run.rows[name]) for name, table in run.tables.items()],
    }


def _table(table: Table, rows: list[Row]) -> dict[str, Any]:
    found = {"name": table.name, "title": table.title, "what": table.what, "dtype": table.dtype, "rows": []}
    if table.plot:
        found["plot"] = table.plot
    if table.columns:
        found["columns"] = [asdict(column) for column in table.columns]
    peer = next((row for row in rows if getattr(row.what, "loader", "") == _PEER), None)
    by_label = {row.label: row for row in rows}
    for row in rows:
        entry: dict[str, Any] = {**asdict(row.what), "label": row.label, "error": row.error, "runs": row.runs}
        entry.pop("most", None)
        names = row.runs[0] if row.runs else ()
        entry["median"] = {name: median(run[name] for run in row.runs) for name in names if name != "round"}
        if table.columns:
            entry["median"] |= _ratios(table, row, rows)
        elif isinstance(row.what, Command):
            base = by_label.get(row.what.over)
            entry["over"] = base and {
                "label": base.label,
                "seconds": {
                    name: _paired(row, base, name, lambda a, b: a - b) for name in ("wall_s", "cpu_s")
                },
            }
        elif peer and row.what.comparable:
            entry["times_peer"] = {
                name: _paired(row, peer, name, lambda a, b: a / b) for name in ("ready_s", "load_s")
            }
        found["rows"].append(entry)
    return found


def _ratios(table: Table, row: Row, rows: list[Row]) -> dict[str, float]:
    """Return the values of the columns "FIGURE x LOADER" for which both rows have the figure."""
    found = {}
    for column in table.columns:
        figure, times, loader = column.name.partition(" x ")
        same = (row for row in rows if times and loader in (getattr(row.what, "loader", ""), row.label))
        other = next(same, None)
        if (
            other
            and row.runs
            and other.runs
            and figure in row.runs[0]
            and getattr(row.what, "comparable", True)
        ):
            ratio = _paired(row, other, figure, lambda a, b: a / b)
            if ratio is not None:
                found[column.name] = ratio
    return found


def _paired(row: Row, other: Row, name: str, combine: Any) -> float | None:
    """Return the median of a combined figure over the rounds that both rows have."""
    theirs = {run["round"]: run[name] for run in other.runs}
    pairs = [combine(run[name], theirs[run["round"]]) for run in row.runs if run["round"] in theirs]
    return median(pairs) if pairs else None


def markdown_of(data: Mapping[str, Any]) -> str:
    """Return the tables as Markdown."""
    machine, versions = data["machine"], data["versions"]
    loads = [run["load_average"] for t in data["tables"] for row in t["rows"] for run in row["runs"]]
    changed = " with changes" if versions["shardload_changed"] else ""
    lines = [
        "# Benchmarks" + (" (quick sizes: the figures mean nothing)" if data["quick"] else ""),
        "",
        f"`{data['command']}`, {data['started']}, {data['seconds'] / 60:.0f} minutes. "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_bytes'] / 2**30:.0f} GiB, "
        f"{machine['system']} {machine['kernel']}, Python {machine['python']}. "
        + ", ".join(f"{name} {versions[name]}" for name in versions if not name.startswith("shardload"))
        + f", shardload {versions['shardload']} ({(versions['shardload_commit'] or 'no commit')[:12]}{changed}).",
        "",
    ]
    if loads:
        noise = (
            f"Load average while it ran: {min(loads):.1f} to {max(loads):.1f} on {machine['cores']} cores. "
            "Read the ratios. Medians; in brackets the least and the greatest."
        )
        lines += [noise, ""]
    for table in data["tables"]:
        lines += [f"## {table['title']}", "", table["what"], ""]
        if table.get("plot"):
            lines += [f"![{table['title']}]({table['name']}.svg)", ""]
        if table.get("columns"):
            lines += _probes(table)
            continue
        is_commands = all("arguments" in row for row in table["rows"])
        lines += _commands(table) if is_commands else _loads(table)
    return "\n".join(lines)


def _loads(table: Mapping[str, Any]) -> list[str]:
    lines = [
        _LOADS_HEAD,
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table["rows"]:
        if not row["runs"]:
            lines.append(f"| {row['label']} | failed: {_one_line(row['error'])} | | | | | | | | 0 |")
            continue
        middle, times = row["median"], row.get("times_peer", {})
        touch = f"{middle['touch_s']:.2f} s" if "touch_s" in middle else ""
        cells = [
            row["label"],
            _spread(row, "ready_s"),
            _times(times.get("ready_s")),
            f"{middle['load_s']:.2f} s",
            _times(times.get("load_s")),
            f"{middle['cpu_s']:.2f} s",
            touch,
            f"{middle['anon_peak'] / _MB:,.0f} MB",
            f"{middle['resident_peak'] / _MB:,.0f} MB",
            str(len(row["runs"])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _commands(table: Mapping[str, Any]) -> list[str]:
    lines = ["| command | wall | more than its base | CPU | more CPU | runs |", "|---|---|---|---|---|---|"]
    for row in table["rows"]:
        if not row["runs"]:
            lines.append(f"| {row['label']} | failed: {_one_line(row['error'])} | | | | 0 |")
            continue
        base = row["over"]
        wall = f"{base['seconds']['wall_s']:+.3f} s over {base['label']}" if base else ""
        cpu = f"{base['seconds']['cpu_s']:+.3f} s" if base else ""
        cells = [row["label"], _spread(row, "wall_s"), wall, f"{row['median']['cpu_s']:.2f} s", cpu]
        lines.append(f"| {' | '.join(cells)} | {len(row['runs'])} |")
    return [*lines, ""]


def _probes(table: Mapping[str, Any]) -> list[str]:
    columns = table["columns"]
    lines = [
        "| " + " | ".join(["", *(column["title"] for column in columns), "runs"]) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for row in table["rows"]:
        if not row["runs"]:
            empty = " |" * len(columns)
            lines.append(f"| {row['label']} | failed: {_one_line(row['error'])}{empty} 0 |")
            continue
        cells = [_figure(row["median"].get(column["name"]), column["unit"]) for column in columns]
        lines.append("| " + " | ".join([row["label"], *cells, str(len(row["runs"]))]) + " |")
    return [*lines, ""]


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "MB":
        return f"{value / _MB:,.0f} MB"
    if unit == "n":
        return f"{value:,.0f}"
    if unit == "x":
        return f"{value:.2f}" if value < 10 else f"{value:.0f}"
    scale, name = {"s": (1, "s"), "ms": (1e3, "ms"), "us": (1e6, "µs")}[unit]
    return f"{value * scale:.3g} {name}" if value * scale < 1000 else f"{value * scale:.0f} {name}"


def _spread(row: Mapping[str, Any], name: str) -> str:
    values = [run[name] for run in row["runs"]]
    return f"{median(values):.2f} s ({min(values):.2f}-{max(values):.2f})"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _one_line(text: str | None) -> str:
    return (text or "not run").splitlines()[-1].replace("|", "\\|")[:120]
