"""The machine of `make mutants` on a toy, and its table against the package, the tests and docs/traps.md."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.mutation import mutations
from tests.mutants.page import rows_of
from tests.mutants.trap import Guard
from tests.mutants.traps import TRAPS
from tests.tiny import run_python

ROOT = Path(__file__).parents[1]
SLICE = (
    "a module with a loader of its own is loaded before its second shard is there",
    "a tie is broken by assigning",
    "what the class itself declares is a fault",
    "the package imports its parts at once",  # the mutant is in a process that the test starts
)

FUNCTION = '''
def joined(parts: list[int], *, more: tuple[int, ...] = ()):
    """Say nothing."""
    total = 0
    for part in [*parts, *more]:
        if part is None and not more:
            continue
        total += int(part, base=10)
    with lock:
        try:
            show(total)
        except OSError:
            raise ValueError(f"{total or 0}")
    return total if total else {**more}
'''


def test_each_kind_of_mutant_is_made_and_taken_back():
    tree = ast.parse(FUNCTION)
    before, made = ast.dump(tree), {}
    for text in mutations(tree.body[0]):
        compile(ast.fix_missing_locations(tree), "toy", "exec")
        made[text] = ast.unparse(tree)
    assert ast.dump(tree) == before
    assert len(set(made.values())) == len(made)
    assert set(made) == {
        "`*parts` dropped from `[*parts, *more]`",
        "`*more` dropped from `[*parts, *more]`",
        "`for part in [*parts, *more]` → ()",
        "`if part is None and (not more)` → True",
        "`if part is None and (not more)` → False",
        "`if part is None and (not more)` → not",
        "`part is None` dropped from an `and`",
        "`not more` dropped from an `and`",
        "`total += int(part, base=10)` deleted",
        "`int(part, base=10)` without `base`",
        "`with lock` dropped",
        "`show(total)` deleted",
        "`except OSError` → ZeroDivisionError",
        "`raise ValueError(f'{total or 0}')` deleted",
        "`return total if total else {**more}` → None",
        "`if total` → True",
        "`if total` → False",
        "`if total` → not",
        "`**more` dropped from `{**more}`",
    }


TOY = """
def halves(values):
    total = 0
    for value in values:
        if value is None:
            continue
        while value > 1:
            total += 1
            value -= 2
    return total
"""
TESTS = """
import toy

def test_none_is_passed_over():
    assert toy.halves([2, None, 5]) == 3

def test_halves():
    assert toy.halves([2, 5]) == 3

def test_that_fails():
    assert toy.halves([2]) == 2
"""
RUN = """
import json, os, sys
from pathlib import Path

sys.path[:0] = [sys.argv[1], "."]
from tests.mutants import child
from tests.mutants.trap import Trap
from tests.mutants.verdict import verdict_on

child.CPU_SECONDS = 2
child.warm_up()
for test, guard in json.loads(sys.argv[2]):
    verdict = verdict_on(Trap("", f"{sys.argv[1]}/test_toy.py::{test}", (guard,), fix="if value is None` → False"))
    print(json.dumps([verdict.known, verdict.fixes_out, verdict.mutants]))
"""


def test_a_toy_whose_test_knows_its_fix_and_one_whose_test_does_not(tmp_path):
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "test_toy.py").write_text(TESTS)
    rows = [
        ("test_none_is_passed_over", "toy:halves"),
        ("test_halves", "toy:halves"),
        ("test_that_fails", "toy:import colorsys"),
        ("test_halves", "shardload.checkpoint.shard:reading_order"),
    ]
    knowing, unknowing, failing, elsewhere = map(
        json.loads, run_python(RUN, str(tmp_path), json.dumps(rows)).stdout.splitlines()
    )
    assert knowing[:2] == [True, ["toy.py halves: `if value is None` → False"]]
    assert unknowing[:2] == [False, []]
    assert "toy.py halves: `if value is None` → False" in unknowing[2]["survived"]
    assert "toy.py halves: `total += 1` deleted" in unknowing[2]["killed"]
    assert "toy.py halves: `value -= 2` deleted" in unknowing[2]["hung"]
    assert failing[0] is False
    assert not elsewhere[2]["killed"]
    assert elsewhere[2]["broken"], "mutants that load nothing prove nothing"


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.trap)
def test_a_row_names_a_test_functions_and_a_fix_that_exist(trap):
    file, *_, name = trap.test.partition("[")[0].split("::")
    functions = [
        node for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef)
    ]
    assert name in {function.name for function in functions}
    assert bool(trap.guards) != bool(trap.exempt)
    assert trap.exempt or any(trap.fix in text for guard in trap.guards for text in Guard(guard).mutants())


def test_a_guard_that_is_gone_is_an_error():
    with pytest.raises(AttributeError):
        Guard("shardload.loading.plan:no_such_function")


def test_the_table_has_each_trap_once_and_exempts_four_at_most():
    assert len({trap.trap for trap in TRAPS}) == len(TRAPS)
    assert sum(bool(trap.exempt) for trap in TRAPS) <= 4


def test_the_page_has_the_table_and_what_is_not_killed_is_exempt():
    rows = rows_of(ROOT / "docs" / "traps.md")
    assert list(rows) == [trap.trap for trap in TRAPS]
    for trap in TRAPS:
        _, _, test, _, _, result, _ = rows[trap.trap].replace("\\|", "").split("|")
        assert test == f" `{trap.test}` "
        assert result.strip() == (f"exempt: {trap.exempt}" if trap.exempt else "known")


def test_a_slice_of_the_traps_is_known_to_its_tests():
    command = [sys.executable, "-W", "ignore", "-m", "tests.mutants", "--until-known", *SLICE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| known |") == len(SLICE)
