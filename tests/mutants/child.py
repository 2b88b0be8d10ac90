"""outcome: runs the collected tests in a forked child in which one mutant is in place."""

from __future__ import annotations

import ast
import contextlib
import multiprocessing
import os
import resource
import signal
import tempfile
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

import shardload
from tests.mutants.trap import Guard

Outcome = Literal["killed", "survived", "broken", "hung"]

CPU_SECONDS, _WALL_SECONDS, _MEMORY = 30, 600, 2**33
_PASSED, _FAILED = 0, 1

# Python imports a module of this name at its start: processes that a test starts get the mutant too.
_SITECUSTOMIZE = """
import importlib.machinery, sys

class Mutant(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target) if name == {name!r} else None
        if spec is not None:
            spec.loader = importlib.machinery.SourceFileLoader(name, {file!r})
        return spec

sys.meta_path.insert(0, Mutant)
"""


def outcome(session: pytest.Session, guard: Guard | None = None) -> Outcome:
    """Return what the session's tests say to a mutant: "killed" when one fails while a plain load still passes.

    "broken" is a mutant that loads no plain model either; "hung" one that ran for too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        child = multiprocessing.get_context("fork").Process(target=_run, args=(session, guard, Path(folder)))
        child.start()
        child.join(_WALL_SECONDS)
        hung = child.is_alive()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # with the processes that the tests started
        child.join()
        if hung or child.exitcode == -signal.SIGXCPU:
            return "hung"
        if child.exitcode == _PASSED:
            return "survived"
        return "killed" if Path(folder, "loads").exists() else "broken"


def _run(session: pytest.Session, guard: Guard | None, folder: Path) -> None:
    """Put the mutant in place, load a plain model, run the tests, and leave the process at once."""
    code = _FAILED
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
        if guard is not None:
            guard.put_in_place()
            _hand_on(guard, folder)
        load_plain_model(folder / "plain")
        (folder / "loads").touch()
        for item in session.items:
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
            if session.testsfailed:
                break
        else:
            code = _PASSED
    finally:
        os._exit(code)


def _hand_on(guard: Guard, folder: Path) -> None:
    mutant = folder / "mutant.py"
    mutant.write_text(ast.unparse(guard.tree))
    path = folder / "path"
    path.mkdir()
    (path / "sitecustomize.py").write_text(
        _SITECUSTOMIZE.format(name=guard.module.__name__, file=str(mutant))
    )
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(path), *([before] if before else [])])


def warm_up() -> None:
    """Import once what every child would import: what a plain load needs, and sympy, for tensors on meta."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        load_plain_model(Path(folder))
    torch.cat([torch.empty(1, device="meta")])


def load_plain_model(folder: Path) -> None:
    """Save and load two Linears. Raises an error when one bit differs."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))

    model, shell = make(), shardload.build_shell(make)
    shardload.save(model, folder)
    shardload.fill(shell, shardload.open_checkpoint(folder))
    for one, other in zip(model.parameters(), shell.model.parameters(), strict=True):
        assert torch.equal(one, other)
