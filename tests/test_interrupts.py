"""Whatever goes wrong, torch, the threads and the descriptors of the process are as they were."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.interrupts import OPTIONS
from tests.tiny import run_python

PATH = {"PYTHONPATH": str(Path(__file__).parents[1])}


@pytest.mark.parametrize("way", OPTIONS)
def test_ctrl_c_leaves_nothing_behind(way):
    """A slice of `make disturb`; its first event depends on the day's process, so that in time all are tried."""
    code = """
import json, sys
from tests.interrupts import OPTIONS, sweep
print(json.dumps(sweep(OPTIONS[sys.argv[1]], step=17, first=int(sys.argv[2]))))
"""
    first = str(1 + os.getpid() % 17)
    left = json.loads(run_python(code, way, first, env=PATH).stdout)
    tries = left.pop("tries")
    assert tries > 50
    assert {name: count for name, count in left.items() if count} == {}


def test_ctrl_c_leaves_nothing_of_a_load_that_quantises():
    pytest.importorskip("bitsandbytes")
    code = """
import json, sys
from tests.interrupts import QUANTISED, sweep
print(json.dumps(sweep(QUANTISED["int8"], step=97, first=int(sys.argv[1]))))
"""
    left = json.loads(run_python(code, str(1 + os.getpid() % 97), env=PATH).stdout)
    assert left.pop("tries") > 20
    assert {name: count for name, count in left.items() if count} == {}


def test_the_next_save_after_ctrl_c_completes():
    code = """
import json, sys
from tests.interrupts import sweep_saves
print(json.dumps(sweep_saves(step=17, first=int(sys.argv[1]))))
"""
    left = json.loads(run_python(code, str(1 + os.getpid() % 17), env=PATH).stdout)
    assert left.pop("tries") > 50
    assert {name: count for name, count in left.items() if count} == {}


def test_children_forked_while_threads_load_can_load():
    """A slice of `make disturb`. The first forks fall into the first imports of the threads: several processes run."""
    code = "from tests.forks import sweep; import json; print(json.dumps(sweep(25)))"
    for _ in range(3):
        assert json.loads(run_python(code, env=PATH).stdout) == {"loads": 25}
