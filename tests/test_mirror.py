"""The tests mirror the package: the test of `shardload/a/_b.py` is `tests/a/test_b.py`, and it imports that file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from shardload.cli import COMMANDS
from tests.test_floors import FILES, PACKAGE, name_of

TESTS = Path(__file__).parent
LONG = 100  # lines; a shorter file may be tested with the file that uses it

LONG_FILES = [
    path
    for path in FILES
    if path.stem not in {"__init__", "__main__"} and len(path.read_text().splitlines()) >= LONG
]

# How these do their work is seen only in the shells that build_shell makes and in what fill puts into them.
SEEN_IN_SHELLS = {"aliases", "default_dtype", "module_loaders"}


def imported(path: Path) -> set[str]:
    """Return the dotted names of the package that a file imports, in functions too, and the files they come from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {home for name in found if name.startswith("shardload.") for home in homes(name)}


def homes(name: str) -> set[str]:
    """Return a name, its module and, where that is the front of a room, the file that the front takes it from."""
    module, _, leaf = name.rpartition(".")
    front = PACKAGE.parent / module.replace(".", "/") / "__init__.py"
    found = {name, module}
    for node in ast.walk(ast.parse(front.read_text())) if front.is_file() else ():
        if isinstance(node, ast.ImportFrom) and node.module != module:
            found |= {
                home
                for alias in node.names
                if leaf == (alias.asname or alias.name)
                for home in homes(f"{node.module}.{alias.name}")
            }
    return found


@pytest.mark.parametrize("path", LONG_FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_has_the_test_of_its_name(path):
    test = TESTS / path.relative_to(PACKAGE).with_name(f"test_{path.stem.lstrip('_')}.py")
    assert test.is_file(), f"no {test.relative_to(TESTS.parent)}"
    if path.parent == PACKAGE / "model" and path.stem in SEEN_IN_SHELLS:
        return
    runs_it = (
        path.parent == PACKAGE / "cli" and path.stem in COMMANDS and f'"{path.stem}"' in test.read_text()
    )
    assert runs_it or name_of(path) in imported(test), f"{test.name} never imports {name_of(path)}"


def test_every_folder_of_tests_is_a_room():
    folders = {test.parent.relative_to(TESTS) for test in TESTS.rglob("test_*.py")}
    own = {"cures", "distributed", "fuzz", "oracles"}
    assert {str(one) for one in folders if not (PACKAGE / one).is_dir()} == own
