"""lowest.txt, constraints.txt and pyproject.toml name the same releases; the table of docs/versions.md is kept."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+) *(?:>=|==) *([0-9.]+)")
PAGE = "# Page\n\n| Python | torch | result |\n|---|---|---|\n"


def script():
    spec = importlib.util.spec_from_file_location("lowest", ROOT / "scripts" / "lowest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def releases(lines):
    """Return {name: release as numbers without zeros at its end} of lines such as `click>=8.1` and `click==8.1.0`."""
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, release = REQUIREMENT.fullmatch(line).groups()
            found[name] = tuple(int(part) for part in re.sub(r"(\.0)+$", "", release).split("."))
    return found


def test_lowest_txt_names_the_bounds_of_pyproject():
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(one for name in extras if name != "oracles" for one in extras[name])]
    assert releases((ROOT / "lowest.txt").read_text().splitlines()) == releases(asked)


def test_the_torch_that_make_installs_is_within_the_bounds():
    pinned = releases((ROOT / "constraints.txt").read_text().splitlines())
    assert pinned["torch"] >= releases((ROOT / "lowest.txt").read_text().splitlines())["torch"]


def test_the_files_that_are_left_out_are_there():
    assert [name for name in script().SLOW if not (ROOT / "tests" / name).exists()] == []


def test_a_row_replaces_the_one_with_the_same_versions(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    lowest = script()
    for row in ("| 3.12 | 2.11 | 1 failed |", "| 3.10 | 2.10 | 5 passed |", "| 3.12 | 2.11 | 5 passed |"):
        lowest.write_row(page, row)
    assert page.read_text() == PAGE + "| 3.10 | 2.10 | 5 passed |\n| 3.12 | 2.11 | 5 passed |\n"


def test_an_outcome_counts_the_tests_and_names_those_that_failed(tmp_path):
    results = tmp_path / "results.xml"
    results.write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b[1]"><failure/></testcase>'
        '<testcase name="b[2]"><error/></testcase><testcase name="c"><skipped/></testcase></testsuite></testsuites>'
    )
    assert script().outcome(results, 1) == "1 passed, 2 failed, 1 skipped: `b`"
    assert script().outcome(tmp_path / "none.xml", -11) == "ended with -11, before the last test"
