"""Prints the table of docs/doctor.md: each kind of finding, a case of it, and its twin.

python scripts/doctor_kinds.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from shardload.diagnosis import diagnose
from tests.diagnosis.kinds import KINDS, Side


def main() -> None:
    """Diagnose every case, and print what the doctor calls it."""
    print("\n".join(table()))


def table() -> list[str]:
    """Return the lines of the table."""
    lines = ["| kind | case | called | twin | called |", "|---|---|---|---|---|"]
    return lines + [
        f"| {kind.name} | {kind.of.words} | {_called(kind.of)} | {kind.twin.words} | {_called(kind.twin)} |"
        for kind in KINDS
    ]


def _called(side: Side) -> str:
    """Return the code of the first finding, and what it says of a quantiser or a field of the config."""
    found = diagnose(side.case())
    if not found:
        return "nothing"
    says = f": {side.says}" if side.says and side.says in f"{found[0].cause} {found[0].cure}" else ""
    return f"`{found[0].code}`{says}"


if __name__ == "__main__":
    main()
