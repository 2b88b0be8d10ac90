"""The floors: imports go down only, type-only imports counted. docs/architecture.md shows the same table."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import shardload

PACKAGE = Path(shardload.__file__).parent

FLOORS = [
    {"errors", "keys", "tensor_ref", "where"},
    {"_system", "dequantise", "dtypes", "keywords", "transformers_shim"},
    {"keymap", "library_parts", "model"},
    {"checkpoint", "diagnosis", "placement"},
    {"compare", "transformers_classes", "writing"},
    {"loading", "remote_code"},
    {"adapters"},
    {"doctor", "forecast", "load", "processor", "repo_class", "saving", "tokenizer"},
    {"auto", "cli"},
    {"__main__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS, 1) for room in rooms}

FILES = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    # The demo repo's files are remote code, not part of the package; nothing imports them.
    if path != PACKAGE / "__init__.py" and PACKAGE / "cli" / "demo_repo" / "chatglm2" not in path.parents
)


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imported_names(path: Path) -> Iterator[str]:
    """Yield every dotted name that a file imports, wherever in the file the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(path: Path) -> set[str]:
    found = set()
    for name in imported_names(path):
        if name in MODULES:
            found.add(name)
        elif name.rpartition(".")[0] in MODULES:
            found.add(name.rpartition(".")[0])
        elif name.startswith("shardload."):
            # A public name that is imported from the package itself is one of its home's.
            found.add(f"shardload.{shardload._HOME_OF[name.split('.')[1]]}")
    return found - {name_of(path)}


GRAPH = {name: imported_modules(path) for name, path in MODULES.items()}


def room(name: str) -> str:
    return name.split(".")[1]


def test_every_room_has_a_floor():
    assert {room(name) for name in MODULES} == set(FLOOR_OF)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name):
    own = room(name)
    for other in {room(imported) for imported in GRAPH[name]} - {own}:
        assert FLOOR_OF[other] < FLOOR_OF[own], (
            f"{own} (floor {FLOOR_OF[own]}) imports {other} (floor {FLOOR_OF[other]})"
        )


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) == "transformers_shim"])
def test_the_shim_imports_the_errors_and_nothing_else(name):
    others = {imported for imported in GRAPH[name] if room(imported) != "transformers_shim"}
    assert {room(other) for other in others} <= {"errors"}
    lines = MODULES[name].read_text().splitlines()
    assert not [line for line in lines if re.match(r"\s*(import shardload\b|from shardload import)", line)]


def test_no_circle_between_files():
    state: dict[str, str] = {}
    path: list[str] = []

    def visit(name: str) -> None:
        assert state.get(name) != "open", f"a circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name in state:
            return
        state[name] = "open"
        path.append(name)
        for other in sorted(GRAPH[name]):
            visit(other)
        path.pop()
        state[name] = "closed"

    for name in GRAPH:
        visit(name)


def test_there_are_ten_floors_at_most():
    assert len(FLOORS) <= 10


@pytest.mark.parametrize("name", MODULES)
def test_private_modules_are_used_by_their_own_room(name):
    """A module whose name begins with `_` is private to the folder that it lies in."""
    for imported in GRAPH[name]:
        parts = imported.split(".")
        for place, part in enumerate(parts):
            if part.startswith("_"):
                folder = ".".join(parts[:place])
                assert name == folder or name.startswith(f"{folder}."), f"{name} imports {imported}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400
