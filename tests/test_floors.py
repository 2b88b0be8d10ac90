"""The floors: imports go down only, type-only imports counted. The table is that of docs/architecture.md."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import shardload

PACKAGE = Path(shardload.__file__).parent

FLOORS = [
    {"errors", "gc_pause", "identity", "mapping", "registration", "tensor_ref", "template", "worker_pool"},
    {
        "atomic_file",
        "byte_size",
        "dtype_names",
        "companions",
        "declined",
        "fresh_pages",
        "keymap",
        "memory",
        "progress",
        "read_ahead",
        "sources",
        "construction",
        "chat_template",
    },
    {"formats", "index", "references", "shard", "shell", "spill", "walker", "writing"},
    {"casting", "checkpoint", "pinned_ring", "saving"},
    {"origin", "plan", "targets", "diagnosis", "verification", "difference"},
    {"memory_plan"},
    {"rehearsal", "stand_in", "ties", "report", "joins", "conversion"},
    {"comparison", "finish", "remote_code"},
    {"stream", "tokenizer"},
    {"filling"},
    {"adapters"},
    {"load", "forecast"},
    {"demo", "examination"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

FILES = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    # The demo repo's files are remote code, not part of the package; nothing imports them.
    if path != PACKAGE / "__init__.py" and PACKAGE / "demo" / "chatglm2" not in path.parents
)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms that a file imports from, wherever in it the import stands."""
    found = set()
    package = ".".join(("shardload", *path.relative_to(PACKAGE).parts[:-1]))
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            )
            module = ".".join(part for part in (base, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "shardload" else [module]
        found |= {name.split(".")[1] for name in names if name.startswith("shardload.")}
    return found - {"__version__"}


def test_every_room_has_a_floor():
    assert {room(path) for path in FILES} - set(FLOOR_OF) == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own = room(path)
    for other in imported_rooms(path) - {own}:
        if other not in FLOOR_OF:
            assert hasattr(shardload, other), f"{path.name} imports shardload.{other}"
            continue
        assert FLOOR_OF[other] < FLOOR_OF[own], (
            f"{own} (floor {FLOOR_OF[own]}) imports {other} (floor {FLOOR_OF[other]})"
        )
